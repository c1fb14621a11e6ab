//! The page finds the very key that a request has, however its scope is made and however the key is written.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send};

use super::desk::{Desk, page};

async fn canary(probe: &Probe) -> String {
    format!("canary-{}", probe.run().await)
}

#[idempotent]
async fn by_caller(State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = global)]
async fn by_global(State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = user)]
async fn by_value(Path(user): Path<String>, State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = (tenant, user))]
async fn by_values(Path((tenant, user)): Path<(String, u32)>, State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = header("X-Tenant"), header = "X-Key")]
async fn by_header(_: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe).await
}

const ABC: &str = "abc-1";
const QUOTED: &str = "\"abc-1\"";

/// Sends the request with the key in one spelling, and looks it up in both: it is there, and nowhere else.
async fn assert_found(header: &str, ask: Ask, scope: &[(&str, &str)], elsewhere: &[&[(&str, &str)]]) {
    for sent in [ABC, QUOTED] {
        let routes = Router::new()
            .route("/caller", post(by_caller))
            .route("/unscoped", post(by_global))
            .route("/value/{user}", post(by_value))
            .route("/values/{tenant}/{user}", post(by_values))
            .route("/header", post(by_header));
        let setup = Setup::of(routes);
        let ask = ask.clone().header(header, sent);
        let first = ask.to(&setup.app).await;
        first.assert_ran(200);
        assert!(ask.to(&setup.app).await.is_replay());
        let desk = Desk::over(&setup.idempotency);
        for typed in [ABC, QUOTED, " abc-1 ", "\"abc-1\";v=1"] {
            let found = desk.json(&[&[("key", typed)], scope].concat()).await;
            assert_eq!(found.status, 200, "{sent} sent, {typed} looked up with {scope:?}: {found:?}");
            let found = found.json();
            assert_eq!((&found["state"], &found["answer"]["body"]), (&"recorded".into(), &first.text().into()));
            assert_eq!((&found["replays"], &found["answer"]["status"]), (&1.into(), &200.into()));
        }
        for scope in elsewhere {
            let found = desk.json(&[&[("key", ABC)], *scope].concat()).await;
            assert_eq!(found.status, 404, "{scope:?}");
        }
        let other = desk.json(&[&[("key", "ABC-1")], scope].concat()).await;
        assert_eq!(other.status, 404, "capitals count");
    }
}

const UNSCOPED: &[(&str, &str)] = &[("scope", "unscoped")];

fn values(lines: &str) -> [(&str, &str); 2] {
    [("scope", "values"), ("values", lines)]
}

fn header<'a>(name: &'a str, lines: &'a str) -> [(&'a str, &'a str); 3] {
    [("scope", "header"), ("header", name), ("header_values", lines)]
}

#[tokio::test]
async fn without_a_scope_for_every_caller() {
    let ask = send("/caller").header("authorization", "Bearer t");
    assert_found("idempotency-key", ask, UNSCOPED, &[&values("Bearer t"), &header("Authorization", "Bearer t")]).await;
    assert_found("idempotency-key", send("/caller"), &[], &[&values("\n")]).await;
}

#[tokio::test]
async fn in_the_global_scope() {
    assert_found("idempotency-key", send("/unscoped"), UNSCOPED, &[&values("global"), &values("\n")]).await;
}

#[tokio::test]
async fn in_the_scope_of_one_value() {
    let elsewhere: [&[_]; 4] = [UNSCOPED, &values("acm"), &values("acme\n7"), &header("user", "acme")];
    assert_found("idempotency-key", send("/value/acme"), &values("acme"), &elsewhere).await;
    assert_found("idempotency-key", send("/value/acme"), &values("acme\r\n"), &elsewhere).await;
}

#[tokio::test]
async fn in_the_scope_of_several_values() {
    let elsewhere: [&[_]; 4] = [UNSCOPED, &values("7\nacme"), &values("acme7"), &values("acme, 7")];
    assert_found("idempotency-key", send("/values/acme/7"), &values("acme\r\n7"), &elsewhere).await;
    assert_found("idempotency-key", send("/values/gr%C3%BCn/7"), &values("grün\n7\n"), &elsewhere).await;
}

#[tokio::test]
async fn in_the_scope_of_a_header() {
    let ask = send("/header").header("x-tenant", "acme");
    let elsewhere: [&[_]; 3] = [UNSCOPED, &values("acme"), &header("X-Tenants", "acme")];
    assert_found("x-key", ask.clone(), &header("X-Tenant", "acme"), &elsewhere).await;
    assert_found("x-key", ask.clone(), &header(" x-TENANT ", " acme \r\n"), &elsewhere).await;
    let twice = ask.header("x-tenant", "globex");
    assert_found("x-key", twice, &header("x-tenant", "acme\r\nglobex"), &[&header("x-tenant", "acme")]).await;
    // Where the header is missing, the caller is bound, and there is no scope.
    assert_found("x-key", send("/header"), UNSCOPED, &[&header("x-tenant", "\n")]).await;
    let page = page().to(&Desk::over(&Setup::of(Router::new()).idempotency).app).await;
    assert!(page.text().contains("<legend>Whose key is it?</legend>"), "the question above the choices");
    let (_, hint) = page.text().split_once("id=\"scope-unscoped-hint\"").unwrap();
    let hint = hint.split_once("</p>").unwrap().0;
    assert!(hint.contains("a header that the request did not have"), "{hint}");
}

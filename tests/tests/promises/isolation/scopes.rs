//! Whose key it is: two scopes with one key get two executions, and never see each other's bytes.

use std::fmt;

use axum::Router;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Ask, H2, Probe, Reply, Setup, post as send};

/// What a session lookup found.
struct User {
    tenant: String,
    id: u32,
}

impl<S: Sync> FromRequestParts<S> for User {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let id = text("x-user").and_then(|id| id.parse().ok()).ok_or(StatusCode::UNAUTHORIZED)?;
        Ok(Self { tenant: text("x-tenant").unwrap_or_default(), id })
    }
}

/// A canary that tells whose execution a response stems from.
async fn canary(probe: &Probe, headers: &HeaderMap) -> String {
    let run = probe.run().await;
    format!("canary-{run}-{:?}-{:?}", headers.get("x-tenant"), headers.get("x-user"))
}

#[idempotent(scope = user.id)]
async fn by_user(user: User, headers: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe, &headers).await + &user.tenant
}

#[idempotent(scope = (user.tenant, user.id))]
async fn by_both(user: User, headers: HeaderMap, State(probe): State<Probe>) -> String {
    let _moved: String = user.tenant;
    canary(&probe, &headers).await
}

#[idempotent(scope = header("X-Tenant"))]
async fn by_header(headers: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe, &headers).await
}

#[idempotent(scope = header("Cookie"))]
async fn by_cookie(headers: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe, &headers).await
}

#[idempotent(scope = global, fingerprint = method + header("cookie"))]
async fn cookie_in_fingerprint(headers: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe, &headers).await
}

#[idempotent(scope = global)]
async fn by_global(headers: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe, &headers).await
}

#[idempotent(scope = Shout(&tenant).to_string() + "!", fingerprint = method)]
async fn by_path(Path(tenant): Path<String>, headers: HeaderMap, State(probe): State<Probe>) -> String {
    canary(&probe, &headers).await
}

struct Shout<'a>(&'a str);

impl fmt::Display for Shout<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_uppercase())
    }
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/user", post(by_user))
        .route("/both", post(by_both))
        .route("/header", post(by_header))
        .route("/cookie", post(by_cookie))
        .route("/cookie-in-fingerprint", post(cookie_in_fingerprint))
        .route("/global", post(by_global))
        .route("/path/{tenant}", post(by_path));
    Setup::of(routes)
}

fn ask(path: &str, tenant: &str, user: &str) -> Ask {
    send(path).key("k").header("x-tenant", tenant).header("x-user", user)
}

/// Each gets its own execution, and then its own replay.
async fn assert_apart(setup: &Setup, asks: &[Ask]) {
    let mut responses: Vec<Reply> = Vec::new();
    for ask in asks {
        let response = ask.to(&setup.app).await;
        response.assert_ran(200);
        assert!(responses.iter().all(|other| other.body != response.body));
        responses.push(response);
    }
    for (ask, response) in asks.iter().zip(&responses).rev() {
        ask.to(&setup.app).await.assert_replay_of(response);
    }
    assert_eq!(setup.probe.runs(), asks.len());
}

#[tokio::test]
async fn two_users_with_one_key_get_two_executions() {
    assert_apart(&setup(), &[ask("/user", "a", "1"), ask("/user", "a", "2"), ask("/user", "a", "12")]).await;
}

#[tokio::test]
async fn parts_of_a_tuple_do_not_run_together() {
    let asks = [ask("/both", "a", "11"), ask("/both", "a1", "1"), ask("/both", "", "1"), ask("/both", "a\",\"1", "1")];
    assert_apart(&setup(), &asks).await;
}

#[tokio::test]
async fn two_tenants_by_header_get_two_executions() {
    let many = send("/header").key("k").header("x-tenant", "a").header("x-tenant", "b");
    assert_apart(&setup(), &[ask("/header", "a", "1"), ask("/header", "b", "1"), ask("/header", "ab", "1"), many])
        .await;
}

#[tokio::test]
async fn without_the_scopes_header_the_caller_is_bound() {
    let setup = setup();
    let alice = send("/header").key("k").header("authorization", "alice");
    let first = alice.to(&setup.app).await;
    let bob = send("/header").key("k").header("authorization", "bob").to(&setup.app).await;
    bob.assert_refused(422, "idempotency_key_mismatch");
    alice.to(&setup.app).await.assert_replay_of(&first);
    ask("/header", "", "1").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    ask("/header", "a", "1").to(&setup.app).await.assert_ran(200);
}

#[tokio::test]
async fn an_expression_over_the_arguments() {
    let setup = setup();
    let first = ask("/path/acme", "", "").to(&setup.app).await;
    ask("/path/ACME", "", "").to(&setup.app).await.assert_replay_of(&first);
    ask("/path/globex", "", "").to(&setup.app).await.assert_ran(200);
}

#[tokio::test]
async fn with_a_scope_a_new_token_of_the_same_user_gets_the_replay() {
    let setup = setup();
    let first = ask("/user", "a", "1").header("authorization", "old").to(&setup.app).await;
    ask("/user", "a", "1").header("authorization", "new").to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn one_global_scope_is_shared_by_all() {
    let setup = setup();
    let first = ask("/global", "a", "1").to(&setup.app).await;
    ask("/global", "b", "2").header("authorization", "c").to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn an_extractor_refuses_before_there_is_a_scope() {
    let setup = setup();
    assert_eq!(ask("/user", "a", "none").to(&setup.app).await.status, 401);
    setup.assert_nothing_stored();
}

#[tokio::test]
async fn within_a_scope_the_endpoint_still_counts() {
    let setup = setup();
    ask("/user", "", "1").to(&setup.app).await.assert_ran(200);
    ask("/global", "", "1").to(&setup.app).await.assert_ran(200);
    // Two endpoints with the same kind of scope and the same value meet, and the second is refused.
    let by_user_again = Router::new().route("/again", post(by_user));
    let (app, probe) = Setup::mount(&setup.idempotency, by_user_again);
    ask("/again", "", "1").to(&app).await.assert_refused(422, "idempotency_key_mismatch");
    assert_eq!(probe.runs(), 0);
}

#[tokio::test]
async fn running_handlers_of_two_tenants_do_not_meet() {
    let setup = setup();
    setup.probe.close();
    let spawn = |tenant: &'static str| {
        let app = setup.app.clone();
        tokio::spawn(async move { ask("/header", tenant, "1").to(&app).await })
    };
    let (a, b) = (spawn("a"), spawn("b"));
    setup.probe.started(2).await;
    ask("/header", "a", "1").to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    assert!(a.await.unwrap().text().contains("\"a\""));
    assert!(b.await.unwrap().text().contains("\"b\""));
}

/// RFC 9113, section 8.2.3: HTTP/2 may spread the cookies over lines, and a retry may come over another protocol.
#[tokio::test]
async fn a_declared_cookie_may_be_spread_over_lines() {
    for path in ["/cookie", "/cookie-in-fingerprint"] {
        let setup = setup();
        let server = setup.serve().await;
        let first = send(path).key("k").header("cookie", "a=1; b=2").at(&server).await;
        first.assert_ran(200);
        let spread = send(path).key("k").header("cookie", "a=1").header("cookie", "b=2");
        H2::open(&server).await.ask(&spread).await.assert_replay_of(&first);
        assert_eq!(setup.probe.runs(), 1);
    }
}

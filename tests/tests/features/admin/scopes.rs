//! The page finds the very key that a request has, however its scope is made and however the key is written.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Uri};
use axum::routing::{post, put};
use idem_axum::{Idempotency, Policy, idempotent};
use idem_tests::{Ask, Probe, Setup, post as send, put as send_put};
use tower::util::MapRequestLayer;

use super::support_page::{SupportPage, page};

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

#[idempotent(scope = path)]
async fn by_path(State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(policy = Policy::WEBHOOK, header = "webhook-id")]
async fn webhook(State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = (user, path))]
async fn by_value_and_path(Path(user): Path<String>, State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = (header("X-Tenant"), path))]
async fn by_header_and_path(State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(scope = header("Host"))]
async fn by_host(State(probe): State<Probe>) -> String {
    canary(&probe).await
}

#[idempotent(key = id, scope = global)]
async fn by_expression(Path(id): Path<String>, State(probe): State<Probe>) -> String {
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
            .route("/header", post(by_header))
            .route("/path/{id}", post(by_path).put(by_path))
            .nest("/hooks", Router::new().route("/{source}", post(webhook)))
            .route("/value-and-path/{user}", put(by_value_and_path))
            .route("/header-and-path", post(by_header_and_path))
            .route("/host", post(by_host));
        let setup = Setup::of(routes);
        let ask = ask.clone().header(header, sent);
        let first = ask.to(&setup.app).await;
        first.assert_ran(200);
        assert!(ask.to(&setup.app).await.is_replay());
        let support = SupportPage::over(&setup.idempotency);
        for typed in [ABC, QUOTED, " abc-1 ", "\"abc-1\";v=1"] {
            let found = support.json(&[&[("key", typed)], scope].concat()).await;
            assert_eq!(found.status, 200, "{sent} sent, {typed} looked up with {scope:?}: {found:?}");
            let found = found.json();
            assert_eq!((&found["state"], &found["response"]["body"]), (&"recorded".into(), &first.text().into()));
            assert_eq!((&found["replays"], &found["response"]["status"]), (&1.into(), &200.into()));
        }
        for scope in elsewhere {
            let found = support.json(&[&[("key", ABC)], *scope].concat()).await;
            assert_eq!(found.status, 404, "{scope:?}");
        }
        let other = support.json(&[&[("key", "ABC-1")], scope].concat()).await;
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
    // If the header is missing, the caller is bound, and there is no scope.
    assert_found("x-key", send("/header"), UNSCOPED, &[&header("x-tenant", "\n")]).await;
    let page = page().to(&SupportPage::over(&Setup::of(Router::new()).idempotency).app).await;
    assert!(page.text().contains("<legend>Whose key is it?</legend>"), "the question above the choices");
    let (_, hint) = page.text().split_once("id=\"scope-unscoped-hint\"").unwrap();
    let hint = hint.split_once("</p>").unwrap().0;
    assert!(hint.contains("a header that the request did not have"), "{hint}");
}

#[tokio::test]
async fn in_the_scope_of_the_host_whose_case_does_not_count() {
    let ask = send("/host").header("host", "API.Example:81");
    let elsewhere: [&[_]; 2] = [UNSCOPED, &header("Host", "api.example")];
    assert_found("idempotency-key", ask.clone(), &header("Host", "api.example:81"), &elsewhere).await;
    assert_found("idempotency-key", ask, &header("host", "API.Example:81"), &elsewhere).await;
}

fn on(path: &str) -> [(&str, &str); 1] {
    [("path", path)]
}

#[tokio::test]
async fn in_a_scope_with_the_path() {
    let elsewhere: [&[_]; 5] =
        [UNSCOPED, &on("PUT /path/7"), &on("POST /path/8"), &on("POST /path/7/"), &values("POST /path/7")];
    let ask = send("/path/7?page=2");
    assert_found("idempotency-key", ask.clone(), &on("POST /path/7"), &elsewhere).await;
    // As a line of an access log has it.
    assert_found("idempotency-key", ask.clone(), &on(" post  /path/7?page=2 HTTP/1.1\r\n"), &elsewhere).await;
    let escaped = send_put("/path/%37");
    assert_found("idempotency-key", escaped, &on("PUT /path/%37"), &[&on("PUT /path/7")]).await;
    assert_found("webhook-id", send("/hooks/stripe"), &on("POST /hooks/stripe"), &[UNSCOPED, &on("POST /stripe")])
        .await;
}

/// Both paths count: the one that was sent, and the one that the handler sees.
#[tokio::test]
async fn in_a_scope_with_a_path_that_a_layer_rewrote() {
    let idempotency = Idempotency::in_memory();
    let (inner, _) = Setup::mount(&idempotency, Router::new().route("/path/{id}", post(by_path)));
    let rewrite = MapRequestLayer::new(|mut request: Request| {
        *request.uri_mut() = Uri::from_static("/path/7?page=2");
        request
    });
    let app = Router::new().fallback_service(inner).layer(rewrite);
    send("/seven?page=1").header("idempotency-key", ABC).to(&app).await.assert_ran(200);
    let support = SupportPage::over(&idempotency);
    for typed in ["POST /seven /path/7", "POST /seven?page=1 /path/7?page=2 HTTP/1.1"] {
        let found = support.json(&[("key", ABC), ("path", typed)]).await;
        assert!(found.status == 200 && found.text().contains("canary-1"), "{typed}: {}", found.text());
    }
    for other in ["POST /seven", "POST /path/7", "POST /path/7 /seven"] {
        assert_eq!(support.json(&[("key", ABC), ("path", other)]).await.status, 404, "{other}");
    }
    let page = page().to(&support.app).await;
    assert!(page.text().contains("If a layer rewrites the path, write both"), "{}", page.text());
}

#[tokio::test]
async fn in_a_scope_with_the_path_and_a_value() {
    let path = on("PUT /value-and-path/ada");
    let elsewhere: [&[_]; 2] = [&path, &values("ada")];
    let ask = send_put("/value-and-path/ada");
    assert_found("idempotency-key", ask, &[&values("ada")[..], &path].concat(), &elsewhere).await;
    let path = on("POST /header-and-path");
    let tenant = header("X-Tenant", "acme");
    let ask = send("/header-and-path").header("x-tenant", "acme");
    assert_found("idempotency-key", ask, &[&tenant[..], &path].concat(), &[&path, &tenant]).await;
}

#[tokio::test]
async fn a_path_that_is_missing_or_wrong_is_explained() {
    let setup = Setup::of(Router::new().route("/path/{id}", post(by_path)));
    send("/path/7").header("idempotency-key", ABC).to(&setup.app).await.assert_ran(200);
    let support = SupportPage::over(&setup.idempotency);
    for wrong in
        ["/path/7", "POST", "POST path/7", "POST https://shop.example/path/7", "POST /path/7 8", "P\u{e4} /path/7"]
    {
        let fields = [("key", ABC), ("path", wrong)];
        let reply = support.send(&fields).await;
        let text = "Write the method and the path as the client sent them, such as POST /orders/7.";
        assert!(reply.status == 400 && reply.text().contains(text), "{wrong}: {}", reply.text());
        assert!(reply.text().contains("id=\"path-wrong\"") && reply.text().contains(&format!("value=\"{wrong}\"")));
        let json = support.json(&fields).await;
        assert!(json.status == 400 && json.text().contains(text), "{wrong}: {}", json.text());
    }
    let missing = support.send(&[("key", ABC)]).await;
    // A key may look free that is none: nothing is promised.
    let running = "a request with it is running now, in a database transaction that this process does not see";
    assert!(missing.text().contains(running) && !missing.text().contains("runs as a new one"), "{}", missing.text());
    let hint = "If the scope of the endpoint contains <code>path</code>, the method and the path are needed as well.";
    assert!(missing.status == 404 && missing.text().contains(hint), "{}", missing.text());
    let other = support.send(&[("key", ABC), ("path", "POST /path/8")]).await;
    assert!(other.status == 404 && !other.text().contains(hint), "{}", other.text());
    assert!(other.text().contains("so do the method and the path"), "{}", other.text());
}

#[tokio::test]
async fn a_change_is_made_under_the_path_that_was_looked_up() {
    let setup = Setup::of(Router::new().route("/path/{id}", post(by_path)));
    for path in ["/path/7", "/path/8"] {
        send(path).header("idempotency-key", ABC).to(&setup.app).await.assert_ran(200);
    }
    let support = SupportPage::over(&setup.idempotency);
    let fields = [("key", ABC), ("path", "POST /path/7")];
    let found = support.send(&fields).await;
    assert!(found.text().contains("<dt>On</dt><dd><code>POST /path/7</code></dd>"), "{}", found.text());
    assert!(found.text().contains("<input type=\"hidden\" name=\"path\" value=\"POST /path/7\">"), "{}", found.text());
    assert_eq!(support.change(&fields, "forget").await.status, 200);
    assert_eq!(support.json(&fields).await.status, 404);
    assert_eq!(support.json(&[("key", ABC), ("path", "POST /path/8")]).await.status, 200);
}

/// A key that the service makes is any text, and no header: quotes and white space are part of it.
#[tokio::test]
async fn a_key_that_the_service_makes_is_found_as_it_is() {
    let long = "k".repeat(300);
    for (path, key) in [
        ("/expression/%C3%9Cberweisung%207", "\u{dc}berweisung 7"),
        ("/expression/a,b;c", "a,b;c"),
        ("/expression/%22abc-1%22", "\"abc-1\""),
        ("/expression/%20abc-1", " abc-1"),
        ("/expression/abc-1", ABC),
        (&format!("/expression/{long}"), &long),
    ] {
        let setup = Setup::of(Router::new().route("/expression/{id}", post(by_expression)));
        send(path).to(&setup.app).await.assert_ran(200);
        let support = SupportPage::over(&setup.idempotency);
        let fields = [("key", key), ("source", "text")];
        let found = support.send(&fields).await;
        assert!(found.status == 200 && found.text().contains("canary-1"), "{key}: {}", found.text());
        let as_header = support.json(&[("key", key)]).await.status;
        assert_eq!(as_header == 200, key == ABC, "{key} is no header: {as_header}");
        assert_eq!(support.change(&fields, "forget").await.status, 200, "{key}");
        assert_eq!(support.json(&fields).await.status, 404, "{key}");
    }
    let support = SupportPage::over(&Setup::of(Router::new()).idempotency);
    let none = support.send(&[("key", ""), ("source", "text")]).await;
    assert!(none.status == 400 && none.text().contains("This cannot be a key: the key is empty."), "{}", none.text());
    // What cannot be a header may be such a key, and the page says so.
    let page = support.send(&[("key", "a b")]).await;
    assert!(page.status == 400 && page.text().contains("<legend>Where does the key come from?</legend>"));
}

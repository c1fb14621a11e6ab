//! No raw key, body, cookie or token is logged, at any level.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::post;
use idem_axum::{IdempotencyKey, idempotent};
use idem_tests::{Ask, Logs, Probe, Setup, feed, once, post as send, responding};
use tracing::Instrument;

const CANARIES: [&str; 7] =
    ["KEY-canary", "BODY-canary", "TOKEN-canary", "COOKIE-canary", "RESPONSE-canary", "TENANT-canary", "PATH-canary"];

#[idempotent(scope = header("X-Tenant"), fingerprint = body + header("Cookie"))]
async fn order(State(probe): State<Probe>, key: IdempotencyKey, body: String) -> Response {
    let run = probe.run().await;
    // What a developer logs of the key is redacted.
    tracing::info!(%key, ?key, "{key} {key:?} running");
    tracing::info!(child = %key.derive("charge"), "a child");
    assert!(body.ends_with("canary"), "panics in run {run}");
    let cookies = AppendHeaders([("set-cookie", "s=COOKIE-canary"), ("x-token", "TOKEN-canary")]);
    (StatusCode::CREATED, cookies, "RESPONSE-canary").into_response()
}

fn ask() -> Ask {
    send("/?token=TOKEN-canary")
        .key("KEY-canary")
        .header("authorization", "Bearer TOKEN-canary")
        .header("cookie", "session=COOKIE-canary")
        .header("x-tenant", "TENANT-canary")
        .body("BODY-canary")
}

#[track_caller]
fn assert_silent(logs: &Logs) {
    let text = logs.text();
    for canary in CANARIES {
        let line = text.lines().find(|line| line.contains(canary));
        assert!(line.is_none(), "`{canary}` is logged: {line:?}");
    }
}

#[tokio::test]
async fn a_request_from_its_first_run_to_its_replay() {
    let (logs, _guard) = Logs::capture();
    let setup = Setup::of(Router::new().route("/", post(order)).route("/of/{name}", post(order)).fallback(order));
    ask().to(&setup.app).await.assert_ran(201);
    for target in ["/of/PATH-canary", "/PATH-canary"] {
        Ask { target: target.to_owned(), ..ask() }.to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    }
    assert!(ask().to(&setup.app).await.is_replay());
    ask().body("other BODY-canary").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    for malformed in ["KEY-canary, KEY-canary", "\"KEY-canary", "KEY canary", &"KEY-canary".repeat(30)] {
        let reply = send("/").key(malformed).body("BODY-canary").to(&setup.app).await;
        reply.assert_refused(400, "idempotency_key_invalid");
    }
    let text = logs.text();
    for seen in ["running", "idempotency{endpoint=POST /of/{name} key=", "idempotency{endpoint=POST * key="] {
        assert!(text.contains(seen), "control: `{seen}` is seen: {text}");
    }
    assert_silent(&logs);
}

#[tokio::test]
async fn a_handler_that_panics() {
    let (logs, _guard) = Logs::capture();
    let setup = Setup::of(Router::new().route("/", post(order)));
    ask().body("BODY-canary that panics").to(&setup.app).await.assert_refused(500, "idempotency_handler_panicked");
    let text = logs.text();
    assert!(text.contains("ERROR") && text.contains("panicked"), "{text}");
    assert_silent(&logs);
}

#[tokio::test]
async fn a_client_that_leaves_a_full_store_and_a_stream_that_breaks() {
    let (logs, _guard) = Logs::capture();
    let setup = Setup::of(Router::new().route("/", post(order)));
    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    ask().to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    request.abort();
    setup.probe.left(1).await;
    setup.probe.open();
    setup.settled().await;
    let full = Setup::with(
        idem_axum::MemoryStore::builder().max_entries(0).build(),
        |builder| builder,
        Router::new().route("/", post(order)),
    );
    ask().to(&full.app).await.assert_refused(503, "idempotency_store_full");
    let (feed, body) = feed();
    feed.send("RESPONSE-canary");
    feed.fail();
    let broken = responding!([], once(body));
    drop(ask().response(&broken.app).await);
    broken.settled().await;
    assert_silent(&logs);
}

#[tokio::test]
async fn what_can_be_printed_of_the_engine_is_redacted() {
    let setup = Setup::of(Router::new().route("/", post(order)));
    ask().to(&setup.app).await.assert_ran(201);
    let refused = ask().body("x").response(&setup.app).await;
    let refusal = refused.extensions().get::<idem_axum::Refusal>().unwrap();
    let printed = format!("{:?} {:?} {refusal:?} {refusal}", setup.store, setup.idempotency);
    for canary in CANARIES {
        assert!(!printed.contains(canary), "{printed}");
    }
}

#[tokio::test]
async fn dropping_the_engine_while_a_handler_runs_is_a_warning() {
    let (logs, _guard) = Logs::capture();
    let setup = Setup::of(Router::new().route("/", post(order)));
    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    request.abort();
    setup.probe.left(1).await;
    let probe = setup.probe.clone();
    drop(setup);
    let text = logs.text();
    assert!(text.contains("WARN") && text.contains("drain"), "{text}");
    // The handler still runs.
    probe.open();
    probe.ended(1).await;
}

#[tokio::test]
async fn what_a_handler_logs_is_within_the_span_of_its_request() {
    async fn span(request: Request, next: Next) -> Response {
        next.run(request).instrument(tracing::info_span!("the-request", number = 7)).await
    }
    let (logs, _guard) = Logs::capture();
    let setup = Setup::of(Router::new().route("/", post(order)).layer(from_fn(span)));
    ask().to(&setup.app).await.assert_ran(201);
    let text = logs.text();
    assert!(text.lines().any(|line| line.contains("running") && line.contains("the-request{number=7}")), "{text}");
}

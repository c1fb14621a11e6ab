//! The refusals as they arrive: exact statuses, headers and members of problem details.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idem_axum::{MemoryStore, Refusal, idempotent};
use idem_tests::{Ask, Connection, Probe, Reply, Setup, post as send, responding};
use serde_json::Value;

#[idempotent(required, max_response = "1KiB")]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    probe.run().await;
    (StatusCode::CREATED, body)
}

fn routes() -> Router<Probe> {
    Router::new().route("/", post(order))
}

fn ask() -> Ask {
    send("/").key("k").body("x")
}

/// The whole of the default body, and the headers that belong to it.
#[track_caller]
fn assert_problem(reply: &Reply, status: u16, code: &str, retry_after: Option<&str>) {
    reply.assert_refused(status, code);
    let problem = reply.json();
    let members: Vec<&str> = problem.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members.len(), 5, "{problem}");
    for member in ["type", "title", "status", "detail", "code"] {
        assert!(members.contains(&member), "{problem}");
    }
    assert_eq!(problem["status"], status);
    assert_eq!(problem["code"], code);
    assert!(problem["type"].as_str().is_some_and(|uri| uri.contains(':') && uri.contains(code)), "{problem}");
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty() && !title.ends_with('.')), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.ends_with('.')), "{problem}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.header("retry-after"), retry_after);
}

#[tokio::test]
async fn each_refusal_over_a_socket() {
    let setup = Setup::with(MemoryStore::builder().max_entries(2).build(), |builder| builder, routes());
    let server = setup.serve().await;
    let mut client = Connection::open(&server).await;
    let reply = send("/").body("x").over(&mut client).await;
    assert_problem(&reply, 400, "idempotency_key_missing", None);
    let reply = send("/").key("a,b").over(&mut client).await;
    assert_problem(&reply, 400, "idempotency_key_invalid", None);
    ask().body("x".repeat(1025)).over(&mut client).await.assert_ran(201);
    let reply = ask().body("x".repeat(1025)).over(&mut client).await;
    assert_problem(&reply, 409, "idempotency_not_replayable", None);
    let reply = ask().body("y").over(&mut client).await;
    assert_problem(&reply, 422, "idempotency_key_mismatch", None);
    setup.probe.close();
    let mut running = Connection::open(&server).await;
    running.send(send("/").key("running").bytes()).await;
    setup.probe.started(2).await;
    let reply = send("/").key("running").over(&mut client).await;
    assert_problem(&reply, 409, "idempotency_key_locked", Some("1"));
    let reply = send("/").key("one too many").key("k3").over(&mut client).await;
    assert_problem(&reply, 400, "idempotency_key_invalid", None);
    let reply = send("/").key("k3").over(&mut client).await;
    assert_problem(&reply, 503, "idempotency_store_full", Some("5"));
}

fn own_errors(refusal: &Refusal) -> Response {
    let again = refusal.retry_after().map_or(0, |after| after.as_secs());
    let header = refusal.policy().header_name();
    (StatusCode::IM_A_TEAPOT, format!("{} {} {again} {header}: {refusal}", refusal.status().as_u16(), refusal.code()))
        .into_response()
}

#[tokio::test]
async fn errors_of_ones_own_see_the_refusal() {
    let setup = responding!([errors = own_errors, required, mismatch = 409, in_flight = reject(423)], || "x");
    let ask = send("/").key("k");
    let missing = send("/").to(&setup.app).await;
    assert!(missing.text().starts_with("400 idempotency_key_missing 0 idempotency-key: "), "{missing:?}");
    setup.probe.close();
    let (app, running) = (setup.app.clone(), ask.clone());
    let running = tokio::spawn(async move { running.to(&app).await });
    setup.probe.started(1).await;
    let locked = ask.to(&setup.app).await;
    assert_eq!(locked.status, 418);
    assert!(locked.text().starts_with("423 idempotency_key_locked 1 "), "{locked:?}");
    setup.probe.open();
    running.await.unwrap().assert_ran(200);
    let mismatch = ask.body("other").to(&setup.app).await;
    assert!(mismatch.text().starts_with("409 idempotency_key_mismatch 0 "), "{mismatch:?}");
    assert!(mismatch.all("content-type").len() == 1 && !mismatch.is_replay());
}

#[tokio::test]
async fn refusals_are_never_recorded() {
    // Not even if `errors` makes a response that a policy would record.
    let setup = responding!([errors = own_errors, required], || "x");
    for _ in 0..3 {
        assert_eq!(send("/").to(&setup.app).await.status, 418);
    }
    setup.assert_nothing_stored();
    assert_eq!(setup.probe.runs(), 0);
}

#[tokio::test]
async fn a_refusal_is_an_extension_of_its_response() {
    let setup = Setup::of(routes());
    let response = send("/").response(&setup.app).await;
    let refusal = response.extensions().get::<Refusal>().unwrap();
    assert!(matches!(refusal, Refusal::KeyMissing { .. }), "{refusal:?}");
    assert_eq!(refusal.status(), response.status());
}

#[tokio::test]
async fn a_detail_says_nothing_about_other_requests() {
    let setup = Setup::of(routes());
    ask().body("canary-of-the-first").to(&setup.app).await.assert_ran(201);
    let reply = ask().body("canary-of-the-second").to(&setup.app).await;
    let problem: Value = reply.json();
    assert!(!problem.to_string().contains("canary"), "{problem}");
}

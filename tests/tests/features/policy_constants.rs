//! Options beside each other: statuses of refusals, policies as constants that options override, Stripe's policy.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use idem_axum::{InFlight, Part, Policy, Replay, Scope, Statuses};
use idem_tests::{Ask, Reply, Setup, post as send, responding};
use serde_json::json;

fn ask() -> Ask {
    send("/").key("k")
}

fn response() -> (StatusCode, [(&'static str, &'static str); 2], Json<serde_json::Value>) {
    (StatusCode::CREATED, [("location", "/1"), ("content-encoding", "identity")], Json(json!({ "id": 1 })))
}

/// A request while the handler waits at the gate.
async fn during(setup: &Setup, other: Ask) -> Reply {
    setup.probe.close();
    let app = setup.app.clone();
    let running = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    let reply = other.to(&setup.app).await;
    setup.probe.open();
    running.await.unwrap();
    reply
}

#[tokio::test]
async fn in_flight_and_mismatch_may_have_other_statuses() {
    let setup = responding!([in_flight = reject(423), mismatch = 400], response);
    let locked = during(&setup, ask()).await;
    locked.assert_refused(423, "idempotency_key_locked");
    assert_eq!(locked.header("retry-after"), Some("1"));
    let setup = responding!([in_flight = reject(423), mismatch = 400], response);
    during(&setup, ask().body("x")).await.assert_refused(400, "idempotency_key_mismatch");
    ask().body("x").to(&setup.app).await.assert_refused(400, "idempotency_key_mismatch");
}

const BOOKINGS: Policy = Policy::DEFAULT
    .header("X-Idempotency-Key")
    .required()
    .ttl(Duration::from_secs(60))
    .fingerprint(&[Part::Path])
    .scope(Scope::Header("X-Tenant"))
    .in_flight(InFlight::reject(423))
    .mismatch(400)
    .record(Statuses::SUCCESS)
    .replay(Replay::STATUS.and(Replay::BODY))
    .replay_status(409)
    .replay_header("X-Replay")
    .max_response(100);

#[tokio::test]
async fn a_policy_is_a_constant_that_endpoints_share() {
    let setup = responding!([policy = BOOKINGS], response);
    send("/").key("k").to(&setup.app).await.assert_refused(400, "idempotency_key_missing");
    let ask = send("/").header("x-idempotency-key", "k");
    ask.to(&setup.app).await.assert_ran(201);
    let replay = ask.clone().body("does not count").to(&setup.app).await;
    assert_eq!((replay.status, replay.header("x-replay"), replay.header("location")), (409, Some("true"), None));
    ask.clone().header("x-tenant", "other").to(&setup.app).await.assert_ran(201);
    setup.clock.advance(Duration::from_secs(60));
    ask.to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn options_override_the_policy_they_start_from() {
    const OPTIONAL: Policy = BOOKINGS.optional();
    let setup = responding!([ttl = "2m", replay_header = none, policy = OPTIONAL, header = "K", record = all], || {
        StatusCode::NOT_FOUND
    });
    send("/").to(&setup.app).await.assert_ran(404);
    let ask = send("/").header("k", "k");
    ask.to(&setup.app).await.assert_ran(404);
    setup.clock.advance(Duration::from_secs(119));
    let replay = ask.to(&setup.app).await;
    assert_eq!((replay.status, replay.header("x-replay"), setup.probe.runs()), (409, None, 2));
    setup.clock.advance(Duration::from_secs(1));
    ask.to(&setup.app).await.assert_ran(404);
}

#[tokio::test]
async fn the_order_of_terms_makes_no_difference() {
    let one = responding!([fingerprint = body + path + method + query], || "x");
    let two = responding!(@routes [fingerprint = query + method + path + body], || "x");
    let first = ask().body("x").to(&one.app).await;
    // The same store behind the other spelling.
    let (app, probe) = Setup::mount(&one.idempotency, two);
    ask().body("x").to(&app).await.assert_replay_of(&first);
    assert_eq!(probe.runs(), 0);
}

#[tokio::test]
async fn stripes_policy_has_stripes_shapes() {
    let setup = responding!([policy = Policy::STRIPE], response);
    let error = |reply: &Reply| {
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let body = reply.json();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        let error = &body["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
        (
            reply.status,
            error["type"].as_str().unwrap().to_owned(),
            error["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let locked = during(&setup, ask()).await;
    assert_eq!(error(&locked), (409, "idempotency_error".into(), "idempotency_key_in_use".into()));
    let mismatch = error(&ask().body("other").to(&setup.app).await);
    assert_eq!((mismatch.0, mismatch.1.as_str()), (400, "idempotency_error"));
    let replay = ask().to(&setup.app).await;
    assert_eq!((replay.status, replay.json(), replay.header("location")), (201, json!({ "id": 1 }), None));
    assert!(replay.is_replay());
    // No key: Stripe runs it, every time.
    send("/").to(&setup.app).await.assert_ran(201);
    send("/").to(&setup.app).await.assert_ran(201);
    setup.clock.advance(Duration::from_secs(24 * 60 * 60));
    ask().to(&setup.app).await.assert_ran(201);
}

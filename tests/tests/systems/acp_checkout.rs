//! The Agentic Commerce Protocol, version 2026-04-17: `rfc.agentic_checkout.md`, section 6.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/acp_checkout.rs"]
mod program;

use std::time::Duration;

use idem_tests::{Ask, Connection, Reply, get, post};
use serde_json::{Value, json};

use self::program::Shop;
use crate::System;

const SESSIONS: &str = "/checkout_sessions";
const KEY: &str = "8d7f4f5e-9f3a-4c1e-9d53-1c1b1f1f0a10";
const TEA: &str = r#"{"items":[{"id":"tea","quantity":2}]}"#;
const MORE_TEA: &str = r#"{"items":[{"id":"tea","quantity":3}]}"#;
const CARD: &str = r#"{"payment_data":{"instrument":{"credential":{"token":"spt_123"}}}}"#;
/// The provider takes the money, and its first response is lost.
const LOST: &str = r#"{"payment_data":{"instrument":{"credential":{"token":"spt_lost"}}}}"#;

async fn serve() -> (System, Shop) {
    let shop = Shop::default();
    (System::serve(|idempotency| program::app(idempotency, shop.clone())).await, shop)
}

fn of(agent: u32, ask: Ask) -> Ask {
    ask.header("authorization", format!("Bearer token-of-agent-{agent}")).header("api-version", "2026-04-17")
}

/// A POST of the first agent, without a key.
fn send(path: &str, body: &str) -> Ask {
    of(1, post(path).json(body))
}

fn create() -> Ask {
    send(SESSIONS, TEA).key(KEY)
}

/// Creates sessions, with keys that no test uses.
async fn with_sessions(system: &System, count: usize) {
    for number in 1..=count {
        let session = send(SESSIONS, TEA).key(&format!("create-{number}")).at(&system.server).await;
        assert_eq!((session.status, &session.json()["id"]), (201, &json!(format!("cs_{number}"))));
    }
}

async fn status(system: &System, id: &str) -> Value {
    of(1, get(&format!("{SESSIONS}/{id}"))).at(&system.server).await.json()["status"].clone()
}

async fn payments(shop: &Shop) -> usize {
    shop.0.lock().await.provider.captured.len()
}

/// A response of the handler for this request.
#[track_caller]
fn assert_first(reply: &Reply, status: u16) {
    assert_eq!((reply.status, reply.is_replay()), (status, false), "{reply:?}");
}

/// "The original response with the same HTTP status code", and `Idempotent-Replayed: true`.
#[track_caller]
fn assert_replay(reply: &Reply, first: &Reply) {
    assert_eq!((reply.status, reply.text()), (first.status, first.text()));
    assert_eq!(reply.header("idempotent-replayed"), Some("true"));
}

/// A flat error, and nothing beside its three fields.
#[track_caller]
fn assert_error(reply: &Reply, status: u16, code: &str) {
    assert_first(reply, status);
    let error = reply.json();
    assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request"), &json!(code)));
    assert!(error["message"].is_string() && error.as_object().map(serde_json::Map::len) == Some(3), "{error}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

/// The four endpoints that take a POST, each with what it takes and the status of its success.
fn posts() -> [(String, &'static str, u16); 4] {
    let session = format!("{SESSIONS}/cs_1");
    let (complete, cancel) = (format!("{session}/complete"), format!("{session}/cancel"));
    [(SESSIONS.to_owned(), TEA, 201), (session, MORE_TEA, 200), (complete, CARD, 200), (cancel, "", 200)]
}

// 6.1: "A POST request without an `Idempotency-Key` header MUST be rejected", 400, `idempotency_key_required`.
#[tokio::test]
async fn every_post_needs_a_key() {
    let (system, shop) = serve().await;
    with_sessions(&system, 1).await;
    for (path, body, _) in posts() {
        assert_error(&send(&path, body).at(&system.server).await, 400, "idempotency_key_required");
    }
    assert_eq!((status(&system, "cs_1").await, payments(&shop).await), (json!("ready_for_payment"), 0));
    // "Retryable: yes (add header)."
    assert_first(&create().at(&system.server).await, 201);
}

// 6.1: "The key is an opaque string, max 255 characters".
#[tokio::test]
async fn a_key_has_up_to_255_characters() {
    let (system, _) = serve().await;
    let longest = send(SESSIONS, TEA).key(&"k".repeat(255));
    let first = longest.at(&system.server).await;
    assert_first(&first, 201);
    assert_replay(&longest.at(&system.server).await, &first);
    let longer = send(SESSIONS, TEA).key(&"k".repeat(256)).at(&system.server).await;
    assert_error(&longer, 400, "idempotency_key_invalid");
}

// 6.1: "Servers MUST scope keys to the authenticated identity + endpoint path; the same key on different endpoints is treated
// independently."
#[tokio::test]
async fn a_key_belongs_to_an_agent_and_a_path() {
    let (system, shop) = serve().await;
    with_sessions(&system, 2).await;
    // One key for everything. The paths of two sessions are two paths of one endpoint.
    let asks = [
        create(),
        of(2, post(SESSIONS).json(MORE_TEA).key(KEY)),
        send("/checkout_sessions/cs_1", TEA).key(KEY),
        send("/checkout_sessions/cs_1/complete", CARD).key(KEY),
        send("/checkout_sessions/cs_2/complete", CARD).key(KEY),
    ];
    let mut first = Vec::new();
    for ask in &asks {
        let reply = ask.at(&system.server).await;
        assert_first(&reply, if ask.target == SESSIONS { 201 } else { 200 });
        first.push(reply);
    }
    let ids: Vec<_> = first.iter().map(|reply| reply.json()["id"].clone()).collect();
    assert_eq!(ids, ["cs_3", "cs_4", "cs_1", "cs_1", "cs_2"]);
    // Each has another payment, though both were made with one key.
    assert_eq!(payments(&shop).await, 2);
    for (ask, first) in asks.iter().zip(&first) {
        assert_replay(&ask.at(&system.server).await, first);
    }
    // The session of one agent does not exist for another, whatever key it has.
    let foreign = of(2, post("/checkout_sessions/cs_1/complete").json(CARD).key(KEY)).at(&system.server).await;
    assert_error(&foreign, 404, "not_found");
}

// "The authenticated identity": a request that is not authenticated never gets to the record, nor uses up the key.
#[tokio::test]
async fn who_is_not_authenticated_gets_no_record() {
    let (system, _) = serve().await;
    for _ in 0..2 {
        let stranger = post(SESSIONS).json(TEA).header("api-version", "2026-04-17").header("authorization", "Bearer x");
        assert_error(&stranger.key(KEY).at(&system.server).await, 401, "unauthorized");
        let ask = create();
        assert_eq!(ask.at(&system.server).await.json()["id"], "cs_1");
    }
    let old =
        post(SESSIONS).json(TEA).header("authorization", "Bearer token-of-agent-1").header("api-version", "2025-09-29");
    let old = old.key(KEY).at(&system.server).await;
    assert_eq!((old.status, &old.json()["supported_versions"]), (400, &json!(["2026-04-17"])));
}

// 6.2: "Equivalence is determined by semantic JSON equality of the request body only; headers are excluded."
#[tokio::test]
async fn the_body_is_compared_as_json() {
    let (system, _) = serve().await;
    // An extension's fields count as well (6.7).
    let original =
        r#"{"items":[{"id":"tea","quantity":2},{"id":"cup","quantity":1}],"discounts":{"codes":["A"],"cap":1}}"#;
    let first = send(SESSIONS, original).key(KEY).at(&system.server).await;
    assert_first(&first, 201);
    let equivalent = [
        // "Different key ordering: yes", "trailing zeros in numbers: yes".
        r#"{"discounts":{"cap":1,"codes":["A"]},"items":[{"quantity":2,"id":"tea"},{"quantity":1,"id":"cup"}]}"#,
        r#"{"items":[{"id":"tea","quantity":2.0},{"id":"cup","quantity":1.00}],"discounts":{"codes":["A"],"cap":1e0}}"#,
        r#" { "items" : [{"id":"te\u0061","quantity":2},{"id":"cup","quantity":1}],"discounts":{"codes":["A"],"cap":1}}"#,
    ];
    for body in equivalent {
        assert_replay(&send(SESSIONS, body).key(KEY).at(&system.server).await, &first);
    }
    let headers = send(SESSIONS, original).key(KEY).header("accept-language", "en-US").header("user-agent", "agent/2");
    assert_replay(&headers.header("request-id", "req_2").at(&system.server).await, &first);
    let different = [
        // "`null` value vs absent key: different."
        original.replace("\"cap\":1", "\"cap\":1,\"buyer\":null"),
        original.replace("}]", "}],\"buyer\":null"),
        // "Array element ordering: no."
        r#"{"items":[{"id":"cup","quantity":1},{"id":"tea","quantity":2}],"discounts":{"codes":["A"],"cap":1}}"#
            .to_owned(),
        // 6.7: "extension-defined fields in the request body MUST participate".
        original.replace("\"A\"", "\"B\""),
        original.replace(",\"discounts\":{\"codes\":[\"A\"],\"cap\":1}", ""),
        original.replace("\"cap\":1", "\"cap\":\"1\""),
    ];
    for body in different {
        assert_ne!(body, original);
        let conflict = send(SESSIONS, &body).key(KEY).at(&system.server).await;
        assert_error(&conflict, 422, "idempotency_conflict");
    }
}

// 6.3: "Same key + identical body: server MUST return the original response with the same HTTP status code." "Servers MUST NOT
// re-execute side effects (e.g., payment capture) on replay."
#[tokio::test]
async fn every_post_is_replayed_with_its_status() {
    for (path, body, status) in posts() {
        let (system, shop) = serve().await;
        with_sessions(&system, 1).await;
        let ask = send(&path, body).key(KEY);
        let first = ask.at(&system.server).await;
        assert_first(&first, status);
        let payments_made = payments(&shop).await;
        for _ in 0..3 {
            assert_replay(&ask.at(&system.server).await, &first);
        }
        assert_eq!(payments(&shop).await, payments_made);
        let next = send(SESSIONS, TEA).key("the-next-one").at(&system.server).await.json()["id"].clone();
        assert_eq!(next, if path == SESSIONS { "cs_3" } else { "cs_2" });
    }
}

// 6.3, of errors: an error that is no server error is a response as any other. Section 4.5: 405 if it is completed.
#[tokio::test]
async fn a_client_error_is_replayed() {
    let (system, _) = serve().await;
    with_sessions(&system, 1).await;
    assert_first(&send("/checkout_sessions/cs_1/complete", CARD).key(KEY).at(&system.server).await, 200);
    let cancel = send("/checkout_sessions/cs_1/cancel", "").key(KEY);
    let first = cancel.at(&system.server).await;
    assert_error(&first, 405, "invalid");
    assert_replay(&cancel.at(&system.server).await, &first);
    // What the extractors reject never was processed, so the corrected request is.
    let invalid = send(SESSIONS, r#"{"items":[{"id":"tea","quantity":0}]}"#).key(KEY).at(&system.server).await;
    assert_error(&invalid, 400, "invalid");
    assert_first(&create().at(&system.server).await, 201);
}

// 6.4: "Same key, different body: 422, `idempotency_conflict`", and it is permanent.
#[tokio::test]
async fn another_body_is_a_conflict() {
    for (path, body, status) in posts() {
        let (system, _) = serve().await;
        with_sessions(&system, 1).await;
        let ask = send(&path, body).key(KEY);
        let first = ask.at(&system.server).await;
        assert_first(&first, status);
        // A body that the endpoint takes, with a field more. A cancellation may say why.
        let other =
            if body.is_empty() { r#"{"why":"rain"}"#.to_owned() } else { body.replacen('{', r#"{"more":1,"#, 1) };
        for _ in 0..2 {
            let conflict = send(&path, &other).key(KEY).at(&system.server).await;
            assert_error(&conflict, 422, "idempotency_conflict");
            assert_eq!(conflict.header("retry-after"), None);
        }
        assert_replay(&ask.at(&system.server).await, &first);
    }
}

// 6.4: "Same key, original request still in flight: 409, `idempotency_in_flight`", "servers SHOULD include `Retry-After`".
#[tokio::test]
async fn a_request_in_flight_is_409() {
    for (path, body, status) in posts() {
        let (system, shop) = serve().await;
        with_sessions(&system, 1).await;
        let ask = send(&path, body).key(KEY);
        let busy = shop.0.lock().await;
        let mut client = Connection::open(&system.server).await;
        client.send(ask.bytes()).await;
        system.running(1).await;
        for _ in 0..3 {
            let in_flight = ask.at(&system.server).await;
            assert_error(&in_flight, 409, "idempotency_in_flight");
            assert_eq!(in_flight.header("retry-after"), Some("1"));
        }
        let conflict = send(&path, r#"{"items":[],"payment_data":{"instrument":{"credential":{"token":""}}}}"#);
        assert_error(&conflict.key(KEY).at(&system.server).await, 422, "idempotency_conflict");
        drop(busy);
        let first = client.reply().await;
        assert_first(&first, status);
        assert_replay(&ask.at(&system.server).await, &first);
    }
}

// 6.5: "Responses with HTTP 5xx status codes MUST NOT be cached", "a retry with the same key after a 5xx MUST be processed as a fresh
// request". 6.8: "retries can resume rather than restart".
#[tokio::test]
async fn a_server_error_is_not_recorded_and_its_payment_is_not_made_twice() {
    let (system, shop) = serve().await;
    with_sessions(&system, 1).await;
    let complete = send("/checkout_sessions/cs_1/complete", LOST).key(KEY);
    let failed = complete.at(&system.server).await;
    assert_first(&failed, 503);
    assert_eq!(failed.json()["type"], "service_unavailable");
    // The provider has the money, and the session does not know of it.
    assert_eq!((status(&system, "cs_1").await, payments(&shop).await), (json!("ready_for_payment"), 1));
    let first = complete.at(&system.server).await;
    assert_first(&first, 200);
    assert_eq!(first.json()["order"]["checkout_session_id"], "cs_1");
    assert_replay(&complete.at(&system.server).await, &first);
    assert_eq!((status(&system, "cs_1").await, payments(&shop).await), (json!("completed"), 1));
}

// 6.6: "at least 24 hours", "after expiry, a reused key is treated as a new request (no error)".
#[tokio::test]
async fn a_key_is_kept_for_24_hours() {
    const NANOSECOND: Duration = Duration::from_nanos(1);
    let (system, _) = serve().await;
    let first = create().at(&system.server).await;
    system.clock.advance(Duration::from_secs(24 * 60 * 60) - NANOSECOND);
    assert_replay(&create().at(&system.server).await, &first);
    system.clock.advance(NANOSECOND);
    let new = send(SESSIONS, MORE_TEA).key(KEY).at(&system.server).await;
    assert_first(&new, 201);
    assert_eq!(new.json()["id"], "cs_2");
}

// 3.1: "`Idempotency-Key`: echo on all POST responses", "`Request-Id`: echo if provided".
#[tokio::test]
async fn key_and_request_id_are_echoed() {
    let (system, _) = serve().await;
    for (request, body, status) in [("req_1", TEA, 201), ("req_2", TEA, 201), ("req_3", MORE_TEA, 422)] {
        let reply = send(SESSIONS, body).key(KEY).header("request-id", request).at(&system.server).await;
        assert_eq!(
            (reply.status, reply.header("idempotency-key"), reply.header("request-id")),
            (status, Some(KEY), Some(request))
        );
    }
    assert_eq!(send(SESSIONS, TEA).at(&system.server).await.header("idempotency-key"), None);
}

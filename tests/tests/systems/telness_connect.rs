//! Telness Connect, API v2.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/telness_connect.rs"]
mod program;

use std::time::Duration;

use idem_tests::{Ask, Connection, Reply, Server, get, post, within};
use serde_json::{Value, json};

use self::program::Orders;
use crate::System;
use crate::clients::{node, statuses, watched};

const ORDERS: &str = "/api/v2/orders";
const KEY: &str = "3f0c9a52-6c43-4b51-9a4b-7f3b7a1f0d11";
const BODY: &str = r#"{"product":"mobile-10gb","quantity":2}"#;

async fn serve(orders: &Orders) -> System {
    System::serve(|idempotency| program::app(idempotency, orders.clone())).await
}

/// A request of the documented client, without a key.
fn ask(method: &'static str, target: &str, body: &str) -> Ask {
    Ask::new(method, target).header("x-api-key", "secret").json(body)
}

fn order() -> Ask {
    ask("POST", ORDERS, BODY).header("X-Idempotency-Key", KEY)
}

async fn made(server: &Server) -> Value {
    get(ORDERS).header("x-api-key", "secret").at(server).await.json()
}

/// What counts of a response: its status, its headers and its body. `Date` is that of the way, and `Cache-Control` says
/// that no cache should respond to the next retry.
fn complete(reply: &Reply) -> (u16, Vec<(String, Vec<u8>)>, &str) {
    let of_the_way = ["date", "cache-control"];
    let mut headers = reply.headers.clone();
    headers.retain(|(name, _)| !of_the_way.contains(&name.as_str()));
    headers.sort();
    (reply.status, headers, reply.text())
}

// "Header `X-Idempotency-Key`, on POST and PATCH, `POST /api/v2/orders` in the documentation's own client."
#[tokio::test]
async fn the_key_counts_on_post_and_on_patch() {
    let system = serve(&Orders::default()).await;
    for _ in 0..2 {
        assert_eq!(order().at(&system.server).await.status, 201);
    }
    assert_eq!(made(&system.server).await["count"], 1);

    let more = ask("PATCH", "/api/v2/orders/ORD-1", r#"{"quantity":1}"#);
    for _ in 0..2 {
        let extended = more.clone().header("X-Idempotency-Key", "more-1").at(&system.server).await;
        assert_eq!(extended.json(), json!({"orderId": "ORD-1", "product": "mobile-10gb", "quantity": 3}));
    }
    assert_eq!(made(&system.server).await["orders"][0]["quantity"], 3);

    // Another header is none, and nothing protects what has no key.
    for _ in 0..2 {
        assert_eq!(ask("POST", ORDERS, BODY).key(KEY).at(&system.server).await.status, 201);
        assert_eq!(more.at(&system.server).await.status, 200);
    }
    let listing = made(&system.server).await;
    assert_eq!((&listing["count"], &listing["orders"][0]["quantity"]), (&json!(3), &json!(5)));
}

// "The complete response is stored: status, headers, body."
#[tokio::test]
async fn the_complete_response_is_replayed() {
    let system = serve(&Orders::default()).await;
    let first = order().at(&system.server).await;
    assert_eq!((first.status, first.header("location")), (201, Some("/api/v2/orders/ORD-1")));
    assert_eq!(first.header("content-type"), Some("application/json"));
    for _ in 0..3 {
        assert_eq!(complete(&order().at(&system.server).await), complete(&first));
    }

    // Errors too, whatever has become of their cause.
    let missing = ask("PATCH", "/api/v2/orders/ORD-2", r#"{"quantity":1}"#).header("X-Idempotency-Key", "more-2");
    let first = missing.at(&system.server).await;
    assert_eq!(first.status, 404);
    assert_eq!(ask("POST", ORDERS, BODY).at(&system.server).await.json()["orderId"], "ORD-2");
    assert_eq!(complete(&missing.at(&system.server).await), complete(&first));
    assert_eq!(made(&system.server).await["orders"][1]["quantity"], 2);
}

// "24 hours; afterwards the same key is a new operation."
#[tokio::test]
async fn a_day_later_the_key_is_a_new_operation() {
    const NANOSECOND: Duration = Duration::from_nanos(1);
    let system = serve(&Orders::default()).await;
    let first = order().at(&system.server).await;
    system.clock.advance(Duration::from_secs(24 * 60 * 60) - NANOSECOND);
    assert_eq!(complete(&order().at(&system.server).await), complete(&first));
    system.clock.advance(NANOSECOND);
    let new = order().at(&system.server).await;
    assert_eq!((new.status, new.json()), (201, json!({"orderId": "ORD-2", "status": "CONFIRMED"})));
    assert_eq!(made(&system.server).await["count"], 2);

    // Of another kind, if it wants to be.
    system.clock.advance(Duration::from_secs(24 * 60 * 60));
    let other = ask("POST", ORDERS, r#"{"product":"fibre","quantity":1}"#).header("X-Idempotency-Key", KEY);
    assert_eq!(other.at(&system.server).await.json()["orderId"], "ORD-3");
}

/// Requests under the key of `order`, each with one thing changed, and what that is.
fn changed() -> Vec<(&'static str, Ask)> {
    let keyed = |ask: Ask| ask.header("X-Idempotency-Key", KEY);
    let bare = |content_type: &str| {
        let ask = post("/api/v2/orders/ORD-1").header("x-api-key", "secret").header("content-type", content_type);
        keyed(ask.body(r#"{"quantity":1}"#))
    };
    vec![
        ("the method", keyed(ask("PATCH", "/api/v2/orders/ORD-1", r#"{"quantity":1}"#))),
        ("the path", keyed(ask("POST", "/api/v2/orders/ORD-2", r#"{"quantity":1}"#))),
        ("the endpoint", keyed(ask("POST", ORDERS, BODY))),
        ("the query", keyed(ask("POST", "/api/v2/orders/ORD-1?dryRun=false", r#"{"quantity":1}"#))),
        ("an empty query", keyed(ask("POST", "/api/v2/orders/ORD-1?", r#"{"quantity":1}"#))),
        ("the body", keyed(ask("POST", "/api/v2/orders/ORD-1", r#"{"quantity":2}"#))),
        ("a blank in the body", keyed(ask("POST", "/api/v2/orders/ORD-1", r#"{"quantity": 1}"#))),
        ("Content-Type", bare("application/json; charset=utf-8")),
        ("Authorization", bare("application/json").header("authorization", "Bearer another")),
    ]
}

// "A valid retry has the same method, the same URL with path and query, the same body byte for byte, and the same headers
// that affect processing (`Content-Type`, `Authorization`)."
// "Changed request: 409 with the code `idempotency_key_mismatch` (the client must not retry)."
#[tokio::test]
async fn whatever_is_changed_is_a_mismatch() {
    let orders = Orders::default();
    let system = serve(&orders).await;
    for _ in 0..2 {
        assert_eq!(ask("POST", ORDERS, BODY).at(&system.server).await.status, 201);
    }
    let first = ask("POST", "/api/v2/orders/ORD-1", r#"{"quantity":1}"#).header("X-Idempotency-Key", KEY);

    // While the first is running, and when it has ended.
    let busy = orders.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(first.bytes()).await;
    system.running(1).await;
    for (what, ask) in changed() {
        println!("{what}, while the first is running");
        ask.at(&system.server).await.assert_refused(409, "idempotency_key_mismatch");
    }
    drop(busy);
    let response = client.reply().await;
    assert_eq!(response.json()["quantity"], 3);
    for (what, ask) in changed() {
        println!("{what}, when the first has ended");
        ask.at(&system.server).await.assert_refused(409, "idempotency_key_mismatch");
    }

    // Nothing was done. Headers that do not affect processing may change.
    let retry = first.header("user-agent", "another").header("x-request-id", "2").header("accept", "*/*");
    assert_eq!(complete(&retry.at(&system.server).await), complete(&response));
    let listing = made(&system.server).await;
    assert_eq!((&listing["count"], &listing["orders"][0]["quantity"]), (&json!(2), &json!(3)));
}

// "While the first is running: 409 with the code `idempotency_key_locked` (the client retries the identical request after
// 100 to 500 ms)."
#[tokio::test]
async fn while_the_first_is_running_the_key_is_locked() {
    let orders = Orders::default();
    let system = serve(&orders).await;
    let busy = orders.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(order().bytes()).await;
    system.running(1).await;
    for _ in 0..3 {
        order().at(&system.server).await.assert_refused(409, "idempotency_key_locked");
    }
    drop(busy);
    let first = client.reply().await;
    assert_eq!(first.json(), json!({"orderId": "ORD-1", "status": "CONFIRMED"}));
    assert_eq!(complete(&order().at(&system.server).await), complete(&first));
    assert_eq!(made(&system.server).await["count"], 1);
}

/// Not a line of the documentation: a key is its owner's, and a record is only for those who may call.
#[tokio::test]
async fn keys_of_two_callers_never_meet() {
    let system = serve(&Orders::default()).await;
    let of = |caller: &str| post(ORDERS).header("x-api-key", caller).header("X-Idempotency-Key", KEY).json(BODY);
    for (caller, order) in [("one", "ORD-1"), ("two", "ORD-2"), ("one", "ORD-1")] {
        assert_eq!(of(caller).at(&system.server).await.json()["orderId"], order);
    }
    let anonymous = post(ORDERS).header("X-Idempotency-Key", KEY).json(BODY).at(&system.server).await;
    assert_eq!(anonymous.status, 401);
    assert_eq!(made(&system.server).await["count"], 2);
}

// "The documented client sends `X-API-Key` and JSON and gets `201 {"orderId": ..., "status": "CONFIRMED"}` both times, with
// one order made."
#[tokio::test]
async fn the_documented_client_gets_its_order_both_times() {
    let system = serve(&Orders::default()).await;
    let url = format!("http://{}{ORDERS}", system.server.address);
    let confirmed = json!([{"status": 201, "body": {"orderId": "ORD-1", "status": "CONFIRMED"}, "attempts": [201]}]);
    for _ in 0..2 {
        assert_eq!(node("telness.mjs", &[&url, KEY, BODY]).await, std::slice::from_ref(&confirmed));
    }
    assert_eq!(made(&system.server).await["count"], 1);

    // With another order under that key it does not retry.
    let other = node("telness.mjs", &[&url, KEY, r#"{"product":"fibre","quantity":1}"#]).await;
    assert_eq!(other[0][0]["status"], 409);
    assert_eq!(other[0][0]["attempts"], json!(["idempotency_key_mismatch"]));
    assert_eq!(made(&system.server).await["count"], 1);
}

#[tokio::test]
async fn the_documented_client_waits_while_the_key_is_locked() {
    let orders = Orders::default();
    let system = serve(&orders).await;
    let (app, mut responses) = watched(program::app(system.idempotency.clone(), orders.clone()));
    let server = Server::start(app).await;
    let url = format!("http://{}{ORDERS}", server.address);

    // Twice at once. The order is made as soon as the later one has been told to wait.
    let busy = orders.0.lock().await;
    let locked = async {
        assert_eq!(within("the first response", responses.recv()).await, Some(409));
        drop(busy);
    };
    let arguments = [&*url, KEY, BODY, BODY];
    let (both, ()) = tokio::join!(node("telness.mjs", &arguments), locked);
    let mut attempts = Vec::new();
    for caller in both[0].as_array().expect("both callers") {
        assert_eq!(caller["body"], json!({"orderId": "ORD-1", "status": "CONFIRMED"}));
        assert_eq!(caller["status"], 201);
        attempts.push(caller["attempts"].clone());
    }
    attempts.sort_by_key(|attempts| attempts.as_array().map(Vec::len));
    assert_eq!(attempts, [json!([201]), json!(["idempotency_key_locked", 201])]);
    assert_eq!(statuses(&mut responses), [201, 201]);
    assert_eq!(made(&system.server).await["count"], 1);
}

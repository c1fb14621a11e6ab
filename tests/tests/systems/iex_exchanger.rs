//! iEXExchanger, private API.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/iex_exchanger.rs"]
mod program;

use idem_tests::{Ask, Connection, Reply, get, post};
use serde_json::json;

use self::program::Exchange;
use crate::System;

const ORDERS: &str = "/private/exchange/orders";
const KEY: &str = "create-order-user-42-001";

async fn serve() -> System {
    serve_with(Exchange::default()).await
}

async fn serve_with(exchange: Exchange) -> System {
    System::serve(|idempotency| program::app(idempotency, exchange)).await
}

fn create_order() -> Ask {
    post(ORDERS).json(r#"{"give":"100 USDT","get":"BTC"}"#)
}

fn create_webhook() -> Ask {
    post("/private/webhooks").json(r#"{"url":"https://shop.example/events"}"#)
}

fn confirm(order: &str) -> Ask {
    post(&format!("{ORDERS}/{order}/confirm"))
}

fn cancel(order: &str) -> Ask {
    post(&format!("{ORDERS}/{order}/cancel"))
}

async fn orders(system: &System) -> usize {
    get(ORDERS).at(&system.server).await.json().as_array().map_or(0, Vec::len)
}

/// The response of a handler that ran for this request.
#[track_caller]
fn assert_first(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("idempotency-replayed"), None, "{reply:?}");
}

/// The stored response, marked.
#[track_caller]
fn assert_stored(reply: &Reply, first: &Reply) {
    assert_eq!((reply.status, reply.text()), (first.status, first.text()));
    assert_eq!(reply.header("content-type"), first.header("content-type"));
    assert_eq!(reply.header("idempotency-replayed"), Some("true"), "{reply:?}");
    assert_eq!(reply.header("idempotent-replayed"), None, "{reply:?}");
}

// "Header `Idempotency-Key`. Used on write requests: `POST /private/exchange/orders`,
// `POST /private/exchange/orders/{order}/confirm`, `POST /private/exchange/orders/{order}/cancel`,
// `POST /private/files/upload-intents/{intent}/commit`, `POST /private/webhooks`."
#[tokio::test]
async fn each_write_request_takes_the_key_and_runs_once() {
    let system = serve().await;
    for (key, order) in [("create-order-user-42-001", "TRK00001"), ("create-order-user-42-002", "TRK00002")] {
        let first = create_order().key(key).at(&system.server).await;
        assert_first(&first, 201);
        assert_eq!(first.json(), json!({"id": order, "give": "100 USDT", "get": "BTC", "status": "new"}));
    }
    let commit = post("/private/files/upload-intents/intent-7/commit");
    let writes = [
        (create_order(), 201, "id", json!("TRK00003")),
        (commit, 201, "id", json!(1)),
        (create_webhook(), 201, "id", json!(1)),
        (confirm("TRK00001"), 200, "status", json!("confirmed")),
        (cancel("TRK00002"), 200, "status", json!("cancelled")),
    ];
    for (index, (ask, status, member, value)) in writes.into_iter().enumerate() {
        let keyed = ask.clone().key(&format!("operation-{index}-001"));
        let first = keyed.at(&system.server).await;
        assert_first(&first, status);
        assert_eq!(first.json()[member], value, "{ask:?}");
        assert_stored(&keyed.at(&system.server).await, &first);

        // With another key it runs, and the response shows that: it has the next number, or it is an error the second time.
        let another = ask.key(&format!("operation-{index}-002")).at(&system.server).await;
        assert_eq!(another.header("idempotency-replayed"), None);
        assert_ne!(another.text(), first.text());
    }
}

// "Repeating the same request with the same key gives the stored response, and may add `Idempotency-Replayed: true` (it
// does here)."
#[tokio::test]
async fn a_repeated_request_gets_the_stored_response_and_the_mark() {
    let system = serve().await;
    let ask = create_order().key(KEY);
    let first = ask.at(&system.server).await;
    assert_first(&first, 201);
    for _ in 0..3 {
        assert_stored(&ask.at(&system.server).await, &first);
    }
    // The stored response, also if the state has changed since.
    assert_first(&confirm("TRK00001").key("confirm-order-TRK00001-001").at(&system.server).await, 200);
    let repeated = ask.at(&system.server).await;
    assert_stored(&repeated, &first);
    assert_eq!(repeated.json()["status"], "new");
    assert_eq!(orders(&system).await, 1);
}

#[tokio::test]
async fn an_error_is_stored_as_well() {
    let system = serve().await;
    let ask = confirm("TRK00001").key("confirm-order-TRK00001-001");
    let first = ask.at(&system.server).await;
    assert_first(&first, 404);
    assert_first(&create_order().key(KEY).at(&system.server).await, 201);
    assert_stored(&ask.at(&system.server).await, &first);
}

// "Same key with another body or another endpoint: conflict, 409."
#[tokio::test]
async fn the_same_key_with_another_body_or_endpoint_is_a_conflict() {
    let system = serve().await;
    let first = create_order().key(KEY).at(&system.server).await;
    assert_first(&first, 201);
    assert_first(&create_order().key("create-order-user-42-002").at(&system.server).await, 201);
    let others = [
        post(ORDERS).json(r#"{"give":"900 USDT","get":"BTC"}"#),
        create_webhook(),
        confirm("TRK00001"),
        cancel("TRK00001"),
        post("/private/files/upload-intents/intent-7/commit"),
    ];
    for other in others {
        other.key(KEY).at(&system.server).await.assert_refused(409, "idempotency_key_mismatch");
    }
    // One endpoint, but another order.
    assert_first(&confirm("TRK00001").key("confirm-order-TRK00001-001").at(&system.server).await, 200);
    let other = confirm("TRK00002").key("confirm-order-TRK00001-001").at(&system.server).await;
    other.assert_refused(409, "idempotency_key_mismatch");

    // Nothing was done, and the stored response is still the first one's.
    assert_stored(&create_order().key(KEY).at(&system.server).await, &first);
    assert_eq!(orders(&system).await, 2);
    assert_first(&confirm("TRK00002").key("confirm-order-TRK00002-001").at(&system.server).await, 200);
    assert_eq!(create_webhook().key("webhook-production-create-001").at(&system.server).await.json()["id"], 1);
}

#[tokio::test]
async fn another_body_is_a_conflict_while_the_first_is_processed() {
    let exchange = Exchange::default();
    let system = serve_with(exchange.clone()).await;
    let busy = exchange.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(create_order().key(KEY).bytes()).await;
    system.running(1).await;
    let other = post(ORDERS).json(r#"{"give":"900 USDT","get":"BTC"}"#).key(KEY);
    other.at(&system.server).await.assert_refused(409, "idempotency_key_mismatch");
    drop(busy);
    assert_first(&client.reply().await, 201);
    assert_eq!(orders(&system).await, 1);
}

// "The main story: the client creates an order, the connection breaks, it retries with the same key and gets the same
// order, not a second one."
#[tokio::test]
async fn the_connection_breaks_while_the_order_is_made() {
    let exchange = Exchange::default();
    let system = serve_with(exchange.clone()).await;
    let ask = create_order().key(KEY);
    let busy = exchange.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(ask.bytes()).await;
    system.running(1).await;
    client.reset();

    // It retries while the order is still being made, and is told to come back.
    ask.at(&system.server).await.assert_refused(409, "idempotency_key_locked");
    drop(busy);
    system.running(0).await;

    let retried = ask.at(&system.server).await;
    assert_eq!(retried.json(), json!({"id": "TRK00001", "give": "100 USDT", "get": "BTC", "status": "new"}));
    assert_eq!((retried.status, retried.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(orders(&system).await, 1);
}

#[tokio::test]
async fn the_connection_breaks_before_the_response_is_read() {
    let system = serve().await;
    let ask = create_order().key(KEY);
    let mut client = Connection::open(&system.server).await;
    client.send(ask.bytes()).await;
    let first = client.head().await;
    client.reset();

    let retried = ask.at(&system.server).await;
    assert_eq!((first.status, retried.status), (201, 201));
    assert_eq!(
        (retried.json()["id"].as_str(), retried.header("idempotency-replayed")),
        (Some("TRK00001"), Some("true"))
    );
    assert_eq!(orders(&system).await, 1);
}

// "A key is unique for one business operation; good keys look like `create-order-user-42-001`,
// `confirm-order-TRK8K2LQ-001`, `webhook-production-create-001`."
#[tokio::test]
async fn good_keys_are_taken() {
    let system = serve().await;
    assert_first(&create_order().key("create-order-user-42-001").at(&system.server).await, 201);
    assert_first(&create_webhook().key("webhook-production-create-001").at(&system.server).await, 201);
    // There is no such order, but the key was good enough to ask.
    let confirmed = confirm("TRK8K2LQ").key("confirm-order-TRK8K2LQ-001").at(&system.server).await;
    assert_first(&confirmed, 404);
    assert_eq!(confirmed.text(), "no such order");
}

// "Keys like `123`, `test`, `random` are called bad: the example refuses keys of fewer than 8 characters with 400."
#[tokio::test]
async fn keys_of_fewer_than_eight_characters_are_refused() {
    let system = serve().await;
    // Quotes are none of the key's characters.
    for key in ["1", "123", "test", "random", "1234567", "\"1234567\"", "\"123456\\\\\""] {
        let refused = create_order().key(key).at(&system.server).await;
        refused.assert_refused(400, "idempotency_key_invalid");
        let detail = refused.json()["detail"].to_string();
        assert!(detail.contains("the key is shorter than 8 characters"), "{detail}");
        assert!(key.len() < 2 || !detail.contains(key), "the key is not repeated: {detail}");
    }
    assert_eq!(orders(&system).await, 0);
    let shortest = create_order().key("12345678").at(&system.server).await;
    assert_first(&shortest, 201);
    assert_stored(&create_order().key("\"12345678\"").at(&system.server).await, &shortest);
}

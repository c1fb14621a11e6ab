//! Stripe.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/stripe_like.rs"]
mod program;

mod sdk;

use std::time::Duration;

use idem_tests::{Ask, Connection, Reply, Server, get, post};
use serde_json::{Value, json};

use self::program::Bank;
use crate::System;

const CHARGES: &str = "/v1/charges";
const KEY: &str = "order-42-charge";

async fn serve(bank: &Bank) -> System {
    System::serve(|idempotency| program::app(idempotency, bank.clone())).await
}

fn charge(params: &str) -> Ask {
    let form = post(CHARGES).header("authorization", "Bearer sk_test_123");
    form.header("content-type", "application/x-www-form-urlencoded").body(params.to_owned())
}

/// All charges, the failed ones too.
async fn made(server: &Server) -> Vec<Value> {
    let list = get(CHARGES).at(server).await.json();
    let charges = list["data"].as_array().expect("a list").clone();
    assert_eq!(list["total_count"], charges.len());
    charges
}

/// The response of a handler that ran for this request.
#[track_caller]
fn assert_first(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert!(!reply.is_replay(), "{reply:?}");
    assert_eq!(reply.header("stripe-should-retry"), None, "{reply:?}");
}

#[track_caller]
fn assert_kept(reply: &Reply, first: &Reply) {
    assert_eq!((reply.status, reply.text()), (first.status, first.text()));
    assert_eq!(reply.header("content-type"), first.header("content-type"));
    assert_eq!(reply.header("idempotent-replayed"), Some("true"), "{reply:?}");
    let no_retry = (first.status >= 500).then_some("false");
    assert_eq!(reply.header("stripe-should-retry"), no_retry, "{reply:?}");
}

#[track_caller]
fn assert_error(reply: &Reply, status: u16, r#type: &str, code: &str) {
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["type"], &error["code"]), (status, &json!(r#type), &json!(code)), "{reply:?}");
    assert!(error["message"].is_string() && !reply.is_replay(), "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

// "`Idempotency-Key` up to 255 characters, optional, on POST."
#[tokio::test]
async fn a_key_has_up_to_255_characters_and_is_optional() {
    let system = serve(&Bank::default()).await;
    let longest = charge("amount=2000&currency=eur").key(&"k".repeat(255));
    let first = longest.at(&system.server).await;
    assert_first(&first, 200);
    assert_eq!((&first.json()["id"], &first.json()["amount"]), (&json!("ch_1"), &json!(2000)));
    assert_kept(&longest.at(&system.server).await, &first);
    let longer = charge("amount=2000&currency=eur").key(&"k".repeat(256)).at(&system.server).await;
    assert_error(&longer, 400, "idempotency_error", "idempotency_key_invalid");
    assert_eq!(made(&system.server).await.len(), 1);

    for id in ["ch_2", "ch_3"] {
        let unprotected = charge("amount=2000&currency=eur").at(&system.server).await;
        assert_first(&unprotected, 200);
        assert_eq!(unprotected.json()["id"], id);
    }
    // On GET it has no effect.
    for _ in 0..2 {
        let listed = get(CHARGES).key(KEY).at(&system.server).await;
        assert_first(&listed, 200);
    }
    assert_eq!(made(&system.server).await.len(), 3);
}

// "Status and body of the first request are kept, 500s included", "once the endpoint began to execute".
// "Replay marker `Idempotent-Replayed: true`." "A recorded 5xx is replayed with `Stripe-Should-Retry: false`."
#[tokio::test]
async fn status_and_body_are_kept_whatever_they_are() {
    let system = serve(&Bank::default()).await;
    for (number, source, status) in [(1, "tok_visa", 200), (2, "tok_chargeDeclined", 402), (3, "tok_bankLost", 500)] {
        let ask = charge(&format!("amount=2000&currency=eur&source={source}")).key(source);
        let first = ask.at(&system.server).await;
        assert_first(&first, status);
        assert_eq!(first.header("request-id"), Some(&*format!("req_{number}")));
        for _ in 0..3 {
            let kept = ask.at(&system.server).await;
            assert_kept(&kept, &first);
            assert_eq!(kept.header("request-id"), None, "status and body, and no other header");
        }
        assert_eq!(made(&system.server).await.len(), number);
    }
}

// "for 24 hours".
#[tokio::test]
async fn they_are_kept_for_a_day() {
    const NANOSECOND: Duration = Duration::from_nanos(1);
    let system = serve(&Bank::default()).await;
    let ask = charge("amount=2000&currency=eur").key(KEY);
    let first = ask.at(&system.server).await;
    system.clock.advance(Duration::from_secs(24 * 60 * 60) - NANOSECOND);
    assert_kept(&ask.at(&system.server).await, &first);
    system.clock.advance(NANOSECOND);
    let new = ask.at(&system.server).await;
    assert_first(&new, 200);
    assert_eq!(new.json()["id"], "ch_2");
}

// "validation failures and concurrent conflicts are not kept and can be retried": the former.
#[tokio::test]
async fn a_validation_failure_is_not_kept() {
    let system = serve(&Bank::default()).await;
    for wrong in ["amount=0&currency=eur", "amount=2000", "amount=many&currency=eur", ""] {
        let refused = charge(wrong).key(KEY).at(&system.server).await;
        assert_first(&refused, 400);
        assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
    }
    // Neither kept, nor does the key belong to the wrong parameters.
    let corrected = charge("amount=2000&currency=eur").key(KEY);
    let first = corrected.at(&system.server).await;
    assert_first(&first, 200);
    assert_kept(&corrected.at(&system.server).await, &first);
    assert_eq!(made(&system.server).await.len(), 1);
}

// "Other parameters with the same key: 400 and an error of type `idempotency_error`."
#[tokio::test]
async fn other_parameters_are_an_idempotency_error() {
    let system = serve(&Bank::default()).await;
    let ask = charge("amount=2000&currency=eur").key(KEY);
    let first = ask.at(&system.server).await;
    for other in ["amount=9000&currency=eur", "amount=2000&currency=usd", "amount=2000&currency=eur&description=tea"] {
        let refused = charge(other).key(KEY).at(&system.server).await;
        assert_error(&refused, 400, "idempotency_error", "idempotency_key_mismatch");
    }
    assert_kept(&ask.at(&system.server).await, &first);
    assert_eq!(made(&system.server).await.len(), 1);
}

// "Concurrent: 409." And the latter: "concurrent conflicts are not kept and can be retried".
#[tokio::test]
async fn a_concurrent_request_is_409_and_can_be_retried() {
    let bank = Bank::default();
    let system = serve(&bank).await;
    let ask = charge("amount=2000&currency=eur").key(KEY);
    let busy = bank.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(ask.bytes()).await;
    system.running(1).await;
    for _ in 0..3 {
        let conflict = ask.at(&system.server).await;
        assert_error(&conflict, 409, "idempotency_error", "idempotency_key_in_use");
        assert_eq!(conflict.header("stripe-should-retry"), None, "the SDK retries a 409 unless it is told not to");
    }
    let other = charge("amount=9000&currency=eur").key(KEY).at(&system.server).await;
    assert_error(&other, 400, "idempotency_error", "idempotency_key_mismatch");
    drop(busy);
    let first = client.reply().await;
    assert_first(&first, 200);
    assert_kept(&ask.at(&system.server).await, &first);
    assert_eq!(made(&system.server).await.len(), 1);
}

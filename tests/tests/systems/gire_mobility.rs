//! Gire Mobility, PUDS API v3.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/gire_mobility.rs"]
mod program;

use std::time::Duration;

use idem_tests::{Ask, Connection, Reply, get, post};
use serde_json::{Value, json};

use self::program::Puds;
use crate::System;

const PUDS: &str = "/api/v3/puds";
const RETURN: &str = "/api/v3/puds/immediate-return";
const UUID: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const NANOSECOND: Duration = Duration::from_nanos(1);

async fn serve() -> System {
    serve_with(Puds::default()).await
}

async fn serve_with(puds: Puds) -> System {
    System::serve(|idempotency| program::app(idempotency, puds)).await
}

fn book(path: &str, car: &str) -> Ask {
    post(path).json(&json!({"regNumber": car}).to_string())
}

async fn booked(system: &System) -> usize {
    get(PUDS).at(&system.server).await.json().as_array().map_or(0, Vec::len)
}

async fn cancel(system: &System, id: usize) {
    let reply = Ask::new("DELETE", &format!("{PUDS}/{id}")).at(&system.server).await;
    assert_eq!(reply.status, 204);
}

/// The response of a handler that ran for this request.
#[track_caller]
fn assert_first(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert!(!reply.is_replay(), "{reply:?}");
}

/// The same status and body, marked.
#[track_caller]
fn assert_replayed(reply: &Reply, first: &Reply) {
    assert_eq!((reply.status, reply.text()), (first.status, first.text()));
    assert_eq!(reply.header("idempotent-replayed"), Some("true"), "{reply:?}");
}

/// A refusal with exactly this body.
#[track_caller]
fn assert_refused(reply: &Reply, status: u16, body: &Value) {
    assert_first(reply, status);
    assert_eq!(reply.json(), *body);
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

fn being_processed() -> Value {
    json!({"message": "A request with the same Idempotency-Key is being processed"})
}

fn already_used() -> Value {
    json!({"message": "This idempotency key has already been used with a different request body"})
}

// "Header `Idempotency-Key` on any `POST`"
#[tokio::test]
async fn any_post_takes_the_header() {
    let system = serve().await;
    for (key, path, car) in [("key-1", PUDS, "AB12345"), ("key-2", RETURN, "CD67890")] {
        let ask = book(path, car).key(key);
        let first = ask.at(&system.server).await;
        assert_first(&first, 201);
        assert_replayed(&ask.at(&system.server).await, &first);
    }
    assert_eq!(booked(&system).await, 2);
}

// "no restriction on the key, UUID v4 suggested"
#[tokio::test]
async fn any_key_of_visible_characters_is_taken() {
    let system = serve().await;
    let visible: String = ('!'..='~').filter(|character| !",;\"".contains(*character)).collect();
    let keys = [UUID.to_owned(), "somekeyhere".to_owned(), "1".to_owned(), visible, "x".repeat(255)];
    for (index, key) in keys.iter().enumerate() {
        let ask = book(PUDS, &format!("AB{index}")).key(key);
        let first = ask.at(&system.server).await;
        assert_first(&first, 201);
        assert_replayed(&ask.at(&system.server).await, &first);
    }
    assert_eq!(booked(&system).await, keys.len());
}

// "optional"
#[tokio::test]
async fn without_the_key_every_request_runs() {
    let system = serve().await;
    assert_first(&book(PUDS, "AB12345").at(&system.server).await, 201);
    let retried = book(PUDS, "AB12345").at(&system.server).await;
    assert_first(&retried, 409);
    assert_eq!(retried.json(), json!({"message": "The car is booked"}));
}

// "The operation runs only once."
#[tokio::test]
async fn the_operation_runs_only_once_even_if_the_client_hangs_up() {
    let puds = Puds::default();
    let system = serve_with(puds.clone()).await;
    let ask = book(PUDS, "AB12345").key(UUID);
    let busy = puds.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(ask.bytes()).await;
    system.running(1).await;
    client.hang_up();
    drop(busy);
    system.running(0).await;
    for _ in 0..3 {
        let retried = ask.at(&system.server).await;
        assert_eq!((retried.status, retried.is_replay()), (201, true), "{retried:?}");
        assert_eq!(retried.json()["id"], 1);
    }
    assert_eq!(booked(&system).await, 1);
}

// "Status code and body of the response are stored (not the headers)."
#[tokio::test]
async fn status_and_body_are_stored_and_the_headers_are_not() {
    let system = serve().await;
    let ask = book(PUDS, "AB12345").key(UUID);
    let first = ask.at(&system.server).await;
    assert_first(&first, 201);
    assert_eq!(first.header("location"), Some("/api/v3/puds/1"));
    assert_eq!(first.json(), json!({"id": 1, "legs": 1, "cancelled": false, "regNumber": "AB12345", "comment": ""}));
    let replay = ask.at(&system.server).await;
    assert_replayed(&replay, &first);
    assert_eq!(replay.header("location"), None, "{replay:?}");
    // A body without its type would be no body.
    assert_eq!(replay.header("content-type"), Some("application/json"));
}

// "Status code and body of the response are stored": an error's as well.
#[tokio::test]
async fn an_error_that_no_parameter_caused_is_stored() {
    let system = serve().await;
    assert_first(&book(PUDS, "AB12345").key("key-1").at(&system.server).await, 201);
    let ask = book(PUDS, "AB12345").key("key-2");
    let first = ask.at(&system.server).await;
    assert_first(&first, 409);
    cancel(&system, 1).await;
    assert_replayed(&ask.at(&system.server).await, &first);
    assert_first(&book(PUDS, "AB12345").key("key-3").at(&system.server).await, 201);
}

// "Not stored: errors that come from parameters failing validation."
#[tokio::test]
async fn validation_errors_are_not_stored() {
    let system = serve().await;
    let invalid = [
        // The handler says no.
        (book(PUDS, ""), 400),
        (book(PUDS, "AB-12345"), 422),
        // Its extractor does: no JSON, no registration number, no type.
        (post(PUDS).json("{"), 400),
        (post(PUDS).json("{}"), 422),
        (post(PUDS).body("{}"), 415),
    ];
    for (index, (invalid, status)) in invalid.into_iter().enumerate() {
        let key = format!("key-{index}");
        let invalid = invalid.key(&key);
        assert_first(&invalid.at(&system.server).await, status);
        assert_first(&invalid.at(&system.server).await, status);
        let corrected = book(PUDS, &format!("AB{index}")).key(&key);
        let first = corrected.at(&system.server).await;
        assert_first(&first, 201);
        assert_replayed(&corrected.at(&system.server).await, &first);
    }
    assert_eq!(booked(&system).await, 5);
}

// "A replay carries `Idempotent-Replayed: true`."
#[tokio::test]
async fn a_replay_is_marked_and_a_first_response_is_not() {
    let system = serve().await;
    let ask = book(PUDS, "AB12345").key(UUID);
    assert_eq!(ask.at(&system.server).await.header("idempotent-replayed"), None);
    for _ in 0..3 {
        assert_eq!(ask.at(&system.server).await.header("idempotent-replayed"), Some("true"));
    }
}

// "Keys are removed after 24 hours and can then be used again."
#[tokio::test]
async fn a_key_can_be_used_again_after_24_hours() {
    let system = serve().await;
    let first = book(PUDS, "AB12345").key(UUID).at(&system.server).await;
    assert_first(&first, 201);
    system.clock.advance(DAY - NANOSECOND);
    assert_replayed(&book(PUDS, "AB12345").key(UUID).at(&system.server).await, &first);
    assert_refused(&book(PUDS, "CD67890").key(UUID).at(&system.server).await, 422, &already_used());
    system.clock.advance(NANOSECOND);
    let again = book(PUDS, "CD67890").key(UUID).at(&system.server).await;
    assert_first(&again, 201);
    assert_eq!(again.json()["id"], 2);
}

// "Still being processed: 409 and exactly
// `{"message": "A request with the same Idempotency-Key is being processed"}`."
#[tokio::test]
async fn still_being_processed() {
    let puds = Puds::default();
    let system = serve_with(puds.clone()).await;
    let ask = book(PUDS, "AB12345").key(UUID);
    let busy = puds.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(ask.bytes()).await;
    system.running(1).await;
    for _ in 0..3 {
        assert_refused(&ask.at(&system.server).await, 409, &being_processed());
    }
    drop(busy);
    let first = client.reply().await;
    assert_first(&first, 201);
    // The refusals were not stored.
    assert_replayed(&ask.at(&system.server).await, &first);
    assert_eq!(booked(&system).await, 1);
}

// "Other payload: 422 and exactly
// `{"message": "This idempotency key has already been used with a different request body"}`."
#[tokio::test]
async fn another_payload() {
    let puds = Puds::default();
    let system = serve_with(puds.clone()).await;
    let ask = book(PUDS, "AB12345").key(UUID);
    let others = [book(PUDS, "CD67890").key(UUID), book(RETURN, "AB12345").key(UUID)];

    let busy = puds.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(ask.bytes()).await;
    system.running(1).await;
    for other in &others {
        assert_refused(&other.at(&system.server).await, 422, &already_used());
    }
    drop(busy);
    let first = client.reply().await;
    assert_first(&first, 201);
    for other in &others {
        assert_refused(&other.at(&system.server).await, 422, &already_used());
    }
    assert_replayed(&ask.at(&system.server).await, &first);
    assert_eq!(booked(&system).await, 1);
}

/// Two companies may choose the same key, and neither gets to see what the other booked.
#[tokio::test]
async fn a_key_is_its_companys() {
    let system = serve().await;
    let of = |company: &str, car: &str| book(PUDS, car).key("somekeyhere").header("x-api-token", company);
    let first = of("company-1", "AB12345").at(&system.server).await;
    assert_first(&first, 201);
    assert_first(&of("company-2", "CD67890").at(&system.server).await, 201);
    assert_first(&of("company-3", "AB12345").at(&system.server).await, 409);
    assert_replayed(&of("company-1", "AB12345").at(&system.server).await, &first);
    assert_eq!(booked(&system).await, 2);
}

/// A refusal that the documentation has no text for has the same shape.
#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let system = serve().await;
    let refused = book(PUDS, "AB12345").key("a b").at(&system.server).await;
    assert_first(&refused, 400);
    let message = refused.json()["message"].to_string();
    assert!(message.contains("is not a valid key"), "{message}");
    assert_eq!(booked(&system).await, 0);
}

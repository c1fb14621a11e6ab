//! Cover Genius XCover.

#[allow(dead_code, reason = "a test has no use for the program's `main`")]
#[path = "../../../examples/xcover.rs"]
mod program;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idem_tests::{Ask, Connection, End, Fault, Proxy, Server, get, post, within};
use serde_json::{Value, json};

use self::program::Bookings;
use crate::System;
use crate::clients::{python, python_with_packages, statuses, watched};

const KEY: &str = "trip-42-instant-booking";
/// With the bytes that `requests` sends.
const PARCEL: &str = r#"{"policy_type": "parcel"}"#;

async fn serve(bookings: &Bookings) -> System {
    System::serve(|idempotency| program::app(idempotency, bookings.clone())).await
}

fn booking(partner: &str, key: &str, body: &str) -> Ask {
    post(&format!("/x/partners/{partner}/instant_booking/")).header("x-idempotency-key", key).json(body)
}

fn instant_booking() -> Ask {
    booking("ACME", KEY, PARCEL)
}

async fn made(server: &Server) -> Value {
    get("/x/partners/ACME/bookings/").at(server).await.json()["count"].clone()
}

fn first_booking() -> Value {
    json!({"id": "XC-1", "status": "CONFIRMED", "partner": "ACME", "policy_type": "parcel", "price": "4.90"})
}

// "Header `x-idempotency-key` on most non-idempotent endpoints (`POST /x/partners/{partner}/instant_booking/`)."
#[tokio::test]
async fn the_header_carries_the_key() {
    let system = serve(&Bookings::default()).await;
    assert_eq!(instant_booking().at(&system.server).await.status, 201);
    assert_eq!(instant_booking().at(&system.server).await.status, 409);
    assert_eq!(made(&system.server).await, 1);
    // Another key is another booking, and so is another partner's; without a key each request is one.
    assert_eq!(booking("ACME", "trip-43", PARCEL).at(&system.server).await.json()["id"], "XC-2");
    assert_eq!(booking("OTHER", KEY, PARCEL).at(&system.server).await.json()["id"], "XC-3");
    for id in ["XC-4", "XC-5"] {
        let unprotected = post("/x/partners/ACME/instant_booking/").key(KEY).json(PARCEL).at(&system.server).await;
        assert_eq!((unprotected.status, &unprotected.json()["id"]), (201, &json!(id)));
    }
    assert_eq!(made(&system.server).await, 4);
}

// "Same key and same body, already processed: the stored body is returned with status **409**, whatever the first status
// was. The client treats 409 as success."
#[tokio::test]
async fn a_booking_made_before_is_409_with_the_stored_body() {
    let system = serve(&Bookings::default()).await;
    let first = instant_booking().at(&system.server).await;
    assert_eq!((first.status, first.json()), (201, first_booking()));
    for _ in 0..3 {
        let again = instant_booking().at(&system.server).await;
        assert_eq!((again.status, &again.body), (409, &first.body));
        assert_eq!(again.header("content-type"), Some("application/json"));
        assert_eq!(again.header("idempotent-replayed"), None, "the status says it");
    }
    assert_eq!(made(&system.server).await, 1);
}

#[tokio::test]
async fn the_stored_body_of_an_error_is_409_as_well() {
    let system = serve(&Bookings::default()).await;
    let nothing = booking("ACME", KEY, r#"{"policy_type":"nothing"}"#);
    let first = nothing.at(&system.server).await;
    assert_eq!((first.status, first.json()), (400, json!({"message": "There is no such policy."})));
    let again = nothing.at(&system.server).await;
    assert_eq!((again.status, &again.body), (409, &first.body));
    assert_eq!(made(&system.server).await, 0);
}

/// "Same body": the documentation gives no status for another one, so it is the draft's.
#[tokio::test]
async fn another_body_is_refused() {
    let system = serve(&Bookings::default()).await;
    let first = instant_booking().at(&system.server).await;
    let other = booking("ACME", KEY, r#"{"policy_type":"trip"}"#).at(&system.server).await;
    other.assert_refused(422, "idempotency_key_mismatch");
    assert_eq!(instant_booking().at(&system.server).await.body, first.body);
    assert_eq!(made(&system.server).await, 1);
}

// "Stored for 48 hours."
#[tokio::test]
async fn two_days_later_it_is_booked_again() {
    const NANOSECOND: Duration = Duration::from_nanos(1);
    let system = serve(&Bookings::default()).await;
    assert_eq!(instant_booking().at(&system.server).await.status, 201);
    system.clock.advance(Duration::from_secs(48 * 60 * 60) - NANOSECOND);
    assert_eq!(instant_booking().at(&system.server).await.status, 409);
    system.clock.advance(NANOSECOND);
    let new = instant_booking().at(&system.server).await;
    assert_eq!((new.status, &new.json()["id"]), (201, &json!("XC-2")));
    assert_eq!(made(&system.server).await, 2);
}

// "First still being processed: **423 Locked**; the client retries after a while."
#[tokio::test]
async fn a_booking_being_made_is_423() {
    let bookings = Bookings::default();
    let system = serve(&bookings).await;
    let busy = bookings.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(instant_booking().bytes()).await;
    system.running(1).await;
    for _ in 0..3 {
        let locked = instant_booking().at(&system.server).await;
        locked.assert_refused(423, "idempotency_key_locked");
        assert_eq!(locked.header("retry-after"), Some("1"));
    }
    let other = booking("ACME", KEY, r#"{"policy_type":"trip"}"#).at(&system.server).await;
    other.assert_refused(422, "idempotency_key_mismatch");
    drop(busy);
    let first = client.reply().await;
    assert_eq!((first.status, first.json()), (201, first_booking()));
    assert_eq!(instant_booking().at(&system.server).await.status, 409);
    assert_eq!(made(&system.server).await, 1);
}

// "The documented client is Python `requests` with `urllib3` `Retry(total=3, status_forcelist=[423, 429, 502, 503, 504],
// backoff_factor=...)` mounted on the session; note that urllib3 retries POST only where `allowed_methods` says so."
#[tokio::test]
async fn the_documented_client_takes_409_for_success() {
    let system = serve(&Bookings::default()).await;
    let url = format!("http://{}/x/partners/ACME/instant_booking/", system.server.address);
    for status in [201, 409] {
        let seen = python("xcover.py", &[&url, KEY]).await;
        assert_eq!(seen, [json!({"status": status, "success": true, "body": first_booking(), "retried": []})]);
    }
    assert_eq!(made(&system.server).await, 1);
}

#[tokio::test]
async fn the_documented_client_retries_until_the_booking_is_made() {
    let bookings = Bookings::default();
    let system = serve(&bookings).await;
    let (app, mut responses) = watched(program::app(system.idempotency.clone(), bookings.clone()));
    let server = Server::start(app).await;
    let url = format!("http://{}/x/partners/ACME/instant_booking/", server.address);

    python_with_packages().await;
    // It loses its patience with the first request, and the booking is made once a retry has been told to wait.
    let busy = bookings.0.lock().await;
    let locked = async {
        assert_eq!(within("the first response", responses.recv()).await, Some(423));
        drop(busy);
    };
    let arguments = [&*url, KEY, "--timeout", "1"];
    let (seen, ()) = tokio::join!(python("xcover.py", &arguments), locked);
    let retried = ["ReadTimeoutError".into(), json!(423)];
    assert_eq!(seen, [json!({"status": 409, "success": true, "body": first_booking(), "retried": retried})]);
    assert_eq!(statuses(&mut responses), [409]);
    assert_eq!(made(&system.server).await, 1);
}

#[tokio::test]
async fn the_documented_client_retries_post_only_where_it_is_allowed() {
    let bookings = Bookings::default();
    let system = serve(&bookings).await;
    let busy = bookings.0.lock().await;
    let mut client = Connection::open(&system.server).await;
    client.send(instant_booking().bytes()).await;
    system.running(1).await;

    let url = format!("http://{}/x/partners/ACME/instant_booking/", system.server.address);
    let seen = python("xcover.py", &[&url, KEY, "--methods", "GET"]).await;
    assert_eq!(
        (&seen[0]["status"], &seen[0]["success"], &seen[0]["retried"]),
        (&json!(423), &json!(false), &json!([]))
    );
    drop(busy);
    assert_eq!(client.reply().await.status, 201);
}

#[tokio::test]
async fn the_documented_client_survives_a_network_that_loses_responses() {
    const FAULTS: [Fault; 3] = [Fault::Unreached(End::Reset), Fault::Lost(End::Close), Fault::TornHead(End::Reset)];
    let system = serve(&Bookings::default()).await;
    let attempts = AtomicUsize::new(0);
    let plan = move |_: &str| FAULTS.get(attempts.fetch_add(1, Ordering::Relaxed)).copied();
    let proxy = Proxy::start(&system.server, plan).await;

    let url = format!("http://{}/x/partners/ACME/instant_booking/", proxy.address);
    let seen = python("xcover.py", &[&url, KEY]).await;
    assert_eq!((&seen[0]["status"], &seen[0]["success"]), (&json!(409), &json!(true)));
    assert_eq!(seen[0]["body"], first_booking());
    assert_eq!(seen[0]["retried"], json!(["ProtocolError", "ProtocolError", "ProtocolError"]));
    assert_eq!(made(&system.server).await, 1);
}

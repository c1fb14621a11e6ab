//! Cover Genius XCover, instant booking: a booking that was made before is 409 with the stored body, one that is being made
//! is 423, and clients take a 409 for success.
//!
//! ```console
//! $ cargo run --example xcover
//! ```

use std::{env, net::Ipv4Addr, sync::Arc};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{BoxError, Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};

#[idempotent(
    header = "x-idempotency-key",
    ttl = "48h",
    scope = partner,
    in_flight = reject(423),
    replay = body,
    replay_status = 409,
    replay_header = none
)]
async fn instant_booking(
    State(bookings): State<Bookings>,
    Path(partner): Path<String>,
    Json(request): Json<Request>,
) -> Result<(StatusCode, Json<Booking>), (StatusCode, Json<Problem>)> {
    let Some(price) = premium(&request.policy_type) else {
        return Err((StatusCode::BAD_REQUEST, Json(Problem { message: "There is no such policy." })));
    };
    let mut bookings = bookings.0.lock().await;
    let id = format!("XC-{}", bookings.len() + 1);
    let booking = Booking { id, status: "CONFIRMED", partner, policy_type: request.policy_type, price };
    bookings.push(booking.clone());
    Ok((StatusCode::CREATED, Json(booking)))
}

/// How many bookings a partner has, and which.
async fn list_bookings(State(bookings): State<Bookings>, Path(partner): Path<String>) -> Json<Listing> {
    let mut results = bookings.0.lock().await.clone();
    results.retain(|booking| booking.partner == partner);
    Json(Listing { count: results.len(), results })
}

pub(crate) fn app(idempotency: Idempotency, bookings: Bookings) -> Router {
    Router::new()
        .route("/x/partners/{partner}/instant_booking/", post(instant_booking))
        .route("/x/partners/{partner}/bookings/", get(list_bookings))
        .layer(IdempotencyLayer::new(idempotency))
        .with_state(bookings)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{}", welcome(&format!("http://{}/x/partners/ACME", listener.local_addr()?)));

    let idempotency = Idempotency::in_memory();
    let server = axum::serve(listener, app(idempotency.clone(), Bookings::default()));
    server.with_graceful_shutdown(async { drop(signal::ctrl_c().await) }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(url: &str) -> String {
    let json = "-H 'Content-Type: application/json'";
    let parcel = r#"-d '{"policy_type":"parcel"}'"#;
    let nothing = r#"-d '{"policy_type":"nothing"}'"#;
    format!(
        "\
The bookings of the partner ACME are at {url}. Try this in another terminal; ctrl-c stops the service.

# A booking: 201.
curl -i {url}/instant_booking/ -H 'x-idempotency-key: trip-1' {json} {parcel}

# The same line again: 409 with the booking that was made, which clients take for success.
curl -i {url}/instant_booking/ -H 'x-idempotency-key: trip-1' {json} {parcel}

# The same key with another body: 422.
curl -i {url}/instant_booking/ -H 'x-idempotency-key: trip-1' {json} {nothing}

# How many bookings there are, and which.
curl -i {url}/bookings/
"
    )
}

fn premium(policy_type: &str) -> Option<&'static str> {
    match policy_type {
        "parcel" => Some("4.90"),
        "trip" => Some("19.00"),
        _ => None,
    }
}

/// Where the bookings are kept.
#[derive(Clone, Default)]
pub(crate) struct Bookings(pub(crate) Arc<Mutex<Vec<Booking>>>);

#[derive(Deserialize)]
struct Request {
    policy_type: String,
}

#[derive(Clone, Serialize)]
pub(crate) struct Booking {
    id: String,
    status: &'static str,
    partner: String,
    policy_type: String,
    price: &'static str,
}

#[derive(Serialize)]
struct Problem {
    message: &'static str,
}

#[derive(Serialize)]
struct Listing {
    count: usize,
    results: Vec<Booking>,
}

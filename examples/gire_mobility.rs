//! The PUDS API of Gire Mobility, version 3: cars are booked to be picked up and delivered. Run it, and try the `curl`
//! lines that it prints:
//!
//! ```console
//! $ cargo run --example gire_mobility
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header::LOCATION};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, post};
use axum::{BoxError, Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, Policy, Refusal, Replay, Scope, Statuses, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};

/// Any `POST`: the operation runs once, and its status and body are kept for a day, except if the parameters were
/// invalid. A key is its company's, which is known by its token (that a real service checks).
const POSTED: Policy = Policy::DEFAULT
    .scope(Scope::Header("x-api-token"))
    .ttl(Duration::from_secs(24 * 60 * 60))
    .record(Statuses::ALL.minus(Statuses::of(400)).minus(Statuses::of(422)))
    .replay(Replay::STATUS.and(Replay::BODY))
    .replay_header("Idempotent-Replayed")
    .errors(refused);

fn refused(refusal: &Refusal) -> Response {
    let message = match refusal {
        Refusal::InFlight { .. } => "A request with the same Idempotency-Key is being processed",
        Refusal::Mismatch { .. } => "This idempotency key has already been used with a different request body",
        other => &other.to_string(),
    };
    (refusal.status(), Json(Message { message })).into_response()
}

#[idempotent(policy = POSTED)]
async fn create_pud(State(puds): State<Puds>, Json(trip): Json<Trip>) -> Result<impl IntoResponse, NotBooked> {
    puds.book(trip, 1).await.map(created)
}

#[idempotent(policy = POSTED)]
async fn create_return_pud(State(puds): State<Puds>, Json(trip): Json<Trip>) -> Result<impl IntoResponse, NotBooked> {
    puds.book(trip, 2).await.map(created)
}

async fn list_puds(State(puds): State<Puds>) -> Json<Vec<Pud>> {
    Json(puds.0.lock().await.clone())
}

async fn cancel_pud(State(puds): State<Puds>, Path(id): Path<usize>) -> StatusCode {
    if puds.cancel(id).await { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

pub(crate) fn app(idempotency: Idempotency, puds: Puds) -> Router {
    Router::new()
        .route("/api/v3/puds", post(create_pud).get(list_puds))
        .route("/api/v3/puds/immediate-return", post(create_return_pud))
        .route("/api/v3/puds/{id}", delete(cancel_pud))
        .layer(IdempotencyLayer::new(idempotency))
        .with_state(puds)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("{}", welcome(listener.local_addr()?));

    let idempotency = Idempotency::in_memory();
    let app = app(idempotency.clone(), Puds::default());
    axum::serve(listener, app).with_graceful_shutdown(async { _ = signal::ctrl_c().await }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(address: SocketAddr) -> String {
    let puds = format!("http://{address}/api/v3/puds");
    let json = "-H 'x-api-token: company-1' -H 'Content-Type: application/json'";
    let trip = r#"-d '{"regNumber":"AB12345","comment":"Keys at the reception."}'"#;
    let other = r#"-d '{"regNumber":"CD67890"}'"#;
    let invalid = r#"-d '{"regNumber":""}'"#;
    format!(
        "\
The bookings are at {puds}. Try this in another terminal; ctrl-c stops the service.

# A car is booked: 201.
curl -i {puds} -H 'Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324' {json} {trip}

# The same line again: the same status and body, marked with Idempotent-Replayed: true, and no second booking.
curl -i {puds} -H 'Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324' {json} {trip}

# The same key with another car: 422.
curl -i {puds} -H 'Idempotency-Key: 8e03978e-40d5-43e8-bc93-6894a57f9324' {json} {other}

# A validation error, 400, does not use up the key: the corrected request is served, 201.
curl -i {puds} -H 'Idempotency-Key: somekeyhere' {json} {invalid}
curl -i {puds} -H 'Idempotency-Key: somekeyhere' {json} {other}

# The key is optional. Without it nothing protects a retry: 409, since the car is booked.
curl -i {puds} {json} {other}

# What is booked.
curl -i {puds}
"
    )
}

/// Where the bookings are kept.
#[derive(Clone, Default)]
pub(crate) struct Puds(pub(crate) Arc<Mutex<Vec<Pud>>>);

impl Puds {
    async fn book(&self, trip: Trip, legs: usize) -> Result<Pud, NotBooked> {
        let mut puds = self.0.lock().await;
        if trip.reg_number.is_empty() {
            return Err(NotBooked(StatusCode::BAD_REQUEST, "regNumber is empty"));
        }
        if !trip.reg_number.chars().all(char::is_alphanumeric) {
            return Err(NotBooked(StatusCode::UNPROCESSABLE_ENTITY, "regNumber has more than letters and digits"));
        }
        if puds.iter().any(|pud| pud.trip.reg_number == trip.reg_number && !pud.cancelled) {
            return Err(NotBooked(StatusCode::CONFLICT, "The car is booked"));
        }
        let pud = Pud { id: puds.len() + 1, legs, cancelled: false, trip };
        puds.push(pud.clone());
        Ok(pud)
    }

    async fn cancel(&self, id: usize) -> bool {
        let mut puds = self.0.lock().await;
        let pud = puds.iter_mut().find(|pud| pud.id == id);
        pud.map(|pud| pud.cancelled = true).is_some()
    }
}

fn created(pud: Pud) -> (StatusCode, [(HeaderName, String); 1], Json<Pud>) {
    (StatusCode::CREATED, [(LOCATION, format!("/api/v3/puds/{}", pud.id))], Json(pud))
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Trip {
    reg_number: String,
    #[serde(default)]
    comment: String,
}

#[derive(Clone, Serialize)]
pub(crate) struct Pud {
    id: usize,
    legs: usize,
    cancelled: bool,
    #[serde(flatten)]
    trip: Trip,
}

/// Why a car was not booked.
struct NotBooked(StatusCode, &'static str);

impl IntoResponse for NotBooked {
    fn into_response(self) -> Response {
        (self.0, Json(Message { message: self.1 })).into_response()
    }
}

#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
}

//! Telness Connect, API v2: a retry must be the very same request, and gets the very same response.
//!
//! ```console
//! $ cargo run --example telness_connect
//! ```

use std::{env, net::Ipv4Addr, sync::Arc, time::Duration};

use axum::extract::{FromRequestParts, Path, State};
use axum::http::{HeaderName, StatusCode, header::LOCATION, request::Parts};
use axum::routing::{get, patch};
use axum::{BoxError, Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, Part, Policy, Scope, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};

/// The rules of every POST and PATCH. While the first request runs a retry is 409 with the code `idempotency_key_locked`,
/// and a changed request is always 409 with the code `idempotency_key_mismatch`.
const RETRIES: Policy = Policy::DEFAULT
    .header("X-Idempotency-Key")
    .ttl(Duration::from_secs(24 * 60 * 60))
    .fingerprint(&[
        Part::Method,
        Part::Path,
        Part::Query,
        Part::Body,
        Part::Header("Content-Type"),
        Part::Header("Authorization"),
    ])
    .scope(Scope::Header("X-API-Key"))
    .mismatch(409)
    .no_replay_header();

#[idempotent(policy = RETRIES)]
async fn create_order(_: ApiKey, State(orders): State<Orders>, Json(new): Json<NewOrder>) -> Created {
    let mut orders = orders.0.lock().await;
    let order_id = format!("ORD-{}", orders.len() + 1);
    orders.push(Order { order_id: order_id.clone(), product: new.product, quantity: new.quantity });
    let location = [(LOCATION, format!("/api/v2/orders/{order_id}"))];
    (StatusCode::CREATED, location, Json(Confirmed { order_id, status: "CONFIRMED" }))
}

/// Adds to an order, so doing it twice adds twice.
#[idempotent(policy = RETRIES)]
async fn extend_order(
    _: ApiKey,
    State(orders): State<Orders>,
    Path(order_id): Path<String>,
    Json(more): Json<More>,
) -> Result<Json<Order>, StatusCode> {
    let mut orders = orders.0.lock().await;
    let order = orders.iter_mut().find(|order| order.order_id == order_id).ok_or(StatusCode::NOT_FOUND)?;
    order.quantity += more.quantity;
    Ok(Json(order.clone()))
}

/// How many orders there are, and which.
async fn list_orders(_: ApiKey, State(orders): State<Orders>) -> Json<Listing> {
    let orders = orders.0.lock().await.clone();
    Json(Listing { count: orders.len(), orders })
}

pub(crate) fn app(idempotency: Idempotency, orders: Orders) -> Router {
    Router::new()
        .route("/api/v2/orders", get(list_orders).post(create_order))
        // POST as well, for clients that cannot PATCH.
        .route("/api/v2/orders/{order}", patch(extend_order).post(extend_order))
        .layer(IdempotencyLayer::new(idempotency))
        .with_state(orders)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{}", welcome(&format!("http://{}/api/v2/orders", listener.local_addr()?)));

    let idempotency = Idempotency::in_memory();
    let server = axum::serve(listener, app(idempotency.clone(), Orders::default()));
    server.with_graceful_shutdown(async { drop(signal::ctrl_c().await) }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(url: &str) -> String {
    let client = "-H 'X-API-Key: secret' -H 'Content-Type: application/json'";
    let order = r#"-d '{"product":"mobile-10gb","quantity":2}'"#;
    let other = r#"-d '{"product":"fibre","quantity":1}'"#;
    let more = r#"-d '{"quantity":1}'"#;
    format!(
        "\
The orders are at {url}. Try this in another terminal; ctrl-c stops the service.

# An order: 201.
curl -i {url} -H 'X-Idempotency-Key: order-1' {client} {order}

# The same line again: the same response, and no second order.
curl -i {url} -H 'X-Idempotency-Key: order-1' {client} {order}

# The same key with another body: 409, idempotency_key_mismatch.
curl -i {url} -H 'X-Idempotency-Key: order-1' {client} {other}

# PATCH: the first line adds to the order, the second one does not.
curl -i -X PATCH {url}/ORD-1 -H 'X-Idempotency-Key: more-1' {client} {more}
curl -i -X PATCH {url}/ORD-1 -H 'X-Idempotency-Key: more-1' {client} {more}

# How many orders there are, and which.
curl -i {url} {client}
"
    )
}

/// Where the orders are kept.
#[derive(Clone, Default)]
pub(crate) struct Orders(pub(crate) Arc<Mutex<Vec<Order>>>);

#[derive(Deserialize)]
struct NewOrder {
    product: String,
    quantity: u32,
}

#[derive(Deserialize)]
struct More {
    quantity: u32,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Order {
    order_id: String,
    product: String,
    quantity: u32,
}

type Created = (StatusCode, [(HeaderName, String); 1], Json<Confirmed>);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Confirmed {
    order_id: String,
    status: &'static str,
}

#[derive(Serialize)]
struct Listing {
    count: usize,
    orders: Vec<Order>,
}

/// Who calls. An extractor runs for every request, so it guards the records too.
struct ApiKey;

impl<S: Sync> FromRequestParts<S> for ApiKey {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        // A real service looks the key up.
        parts.headers.get("X-API-Key").map(|_| Self).ok_or(StatusCode::UNAUTHORIZED)
    }
}

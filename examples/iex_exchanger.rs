//! The private API of iEXExchanger: five write requests under one policy. Run it, and try the `curl` lines that it prints:
//!
//! ```console
//! $ cargo run --example iex_exchanger
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{BoxError, Json, Router, routing::post};
use idem_axum::{Idempotency, IdempotencyLayer, Policy, idempotent};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};

/// Repeated, a write gets the stored response and a mark. The same key with anything else is a conflict, and a key that
/// is no name of one operation, like `123` or `test`, is refused.
const WRITE: Policy = Policy::DEFAULT.min_key(8).mismatch(409).replay_header("Idempotency-Replayed");

#[idempotent(policy = WRITE)]
async fn create_order(State(exchange): State<Exchange>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
    (StatusCode::CREATED, Json(exchange.create_order(new).await))
}

#[idempotent(policy = WRITE)]
async fn confirm_order(State(exchange): State<Exchange>, Path(order): Path<String>) -> Result<Json<Order>, Rejected> {
    exchange.settle(&order, Status::Confirmed).await.map(Json)
}

#[idempotent(policy = WRITE)]
async fn cancel_order(State(exchange): State<Exchange>, Path(order): Path<String>) -> Result<Json<Order>, Rejected> {
    exchange.settle(&order, Status::Cancelled).await.map(Json)
}

#[idempotent(policy = WRITE)]
async fn commit_upload(State(exchange): State<Exchange>, Path(intent): Path<String>) -> (StatusCode, Json<File>) {
    (StatusCode::CREATED, Json(exchange.commit_upload(intent).await))
}

#[idempotent(policy = WRITE)]
async fn create_webhook(State(exchange): State<Exchange>, Json(new): Json<NewWebhook>) -> (StatusCode, Json<Webhook>) {
    (StatusCode::CREATED, Json(exchange.create_webhook(new).await))
}

async fn list_orders(State(exchange): State<Exchange>) -> Json<Vec<Order>> {
    Json(exchange.0.lock().await.orders.clone())
}

pub(crate) fn app(idempotency: Idempotency, exchange: Exchange) -> Router {
    Router::new()
        .route("/private/exchange/orders", post(create_order).get(list_orders))
        .route("/private/exchange/orders/{order}/confirm", post(confirm_order))
        .route("/private/exchange/orders/{order}/cancel", post(cancel_order))
        .route("/private/files/upload-intents/{intent}/commit", post(commit_upload))
        .route("/private/webhooks", post(create_webhook))
        .layer(IdempotencyLayer::new(idempotency))
        .with_state(exchange)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("{}", welcome(listener.local_addr()?));

    let idempotency = Idempotency::in_memory();
    let app = app(idempotency.clone(), Exchange::default());
    axum::serve(listener, app).with_graceful_shutdown(async { _ = signal::ctrl_c().await }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(address: SocketAddr) -> String {
    let orders = format!("http://{address}/private/exchange/orders");
    let webhooks = format!("http://{address}/private/webhooks");
    let json = "-H 'Content-Type: application/json'";
    let order = r#"-d '{"give":"100 USDT","get":"BTC"}'"#;
    let other = r#"-d '{"give":"900 USDT","get":"BTC"}'"#;
    let webhook = r#"-d '{"url":"https://shop.example/events"}'"#;
    format!(
        "\
The exchange is at {orders}. Try this in another terminal; ctrl-c stops it.

# A client creates an order, 201, but the connection breaks before it has the response.
curl -i {orders} -H 'Idempotency-Key: create-order-user-42-001' {json} {order}

# It sends the same line again: the same order, marked with Idempotency-Replayed: true, and not a second one.
curl -i {orders} -H 'Idempotency-Key: create-order-user-42-001' {json} {order}
curl -i {orders}

# The same key with another body, or at another endpoint: 409.
curl -i {orders} -H 'Idempotency-Key: create-order-user-42-001' {json} {other}
curl -i -X POST {orders}/TRK00001/confirm -H 'Idempotency-Key: create-order-user-42-001'

# A new key for each operation. To confirm twice is an error, to repeat the request is none.
curl -i -X POST {orders}/TRK00001/confirm -H 'Idempotency-Key: confirm-order-TRK00001-001'
curl -i -X POST {orders}/TRK00001/confirm -H 'Idempotency-Key: confirm-order-TRK00001-001'
curl -i {webhooks} -H 'Idempotency-Key: webhook-production-create-001' {json} {webhook}

# A key that is too short to be unique: 400.
curl -i {orders} -H 'Idempotency-Key: test' {json} {order}
"
    )
}

/// Where orders, files and webhooks are kept.
#[derive(Clone, Default)]
pub(crate) struct Exchange(pub(crate) Arc<Mutex<Books>>);

impl Exchange {
    async fn create_order(&self, NewOrder { give, get }: NewOrder) -> Order {
        let orders = &mut self.0.lock().await.orders;
        let order = Order { id: format!("TRK{:05}", orders.len() + 1), give, get, status: Status::New };
        orders.push(order.clone());
        order
    }

    async fn settle(&self, id: &str, status: Status) -> Result<Order, Rejected> {
        let orders = &mut self.0.lock().await.orders;
        let order = orders.iter_mut().find(|order| order.id == id).ok_or((StatusCode::NOT_FOUND, "no such order"))?;
        if order.status != Status::New {
            return Err((StatusCode::CONFLICT, "the order is not new"));
        }
        order.status = status;
        Ok(order.clone())
    }

    async fn commit_upload(&self, intent: String) -> File {
        let books = &mut *self.0.lock().await;
        books.files += 1;
        File { id: books.files, intent }
    }

    async fn create_webhook(&self, NewWebhook { url }: NewWebhook) -> Webhook {
        let books = &mut *self.0.lock().await;
        books.webhooks += 1;
        Webhook { id: books.webhooks, url }
    }
}

#[derive(Default)]
pub(crate) struct Books {
    orders: Vec<Order>,
    files: usize,
    webhooks: usize,
}

type Rejected = (StatusCode, &'static str);

#[derive(Deserialize)]
struct NewOrder {
    give: String,
    get: String,
}

#[derive(Clone, Serialize)]
struct Order {
    id: String,
    give: String,
    get: String,
    status: Status,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    New,
    Confirmed,
    Cancelled,
}

#[derive(Serialize)]
struct File {
    id: usize,
    intent: String,
}

#[derive(Deserialize)]
struct NewWebhook {
    url: String,
}

#[derive(Serialize)]
struct Webhook {
    id: usize,
    url: String,
}

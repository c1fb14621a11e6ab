//! A small order service whose clients may retry. Run it, and try the `curl` lines that it prints:
//!
//! ```console
//! $ cargo run --example orders
//! $ STORE=redis://localhost:6379 cargo run --example orders --features stores
//! $ STORE=postgres://user@localhost/database cargo run --example orders --features stores
//! $ STORE=sqlite://orders.db cargo run --example orders --features stores
//! ```
//!
//! The store keeps claims and records. The orders themselves are kept in this process, and a restart forgets them.

#[cfg(feature = "stores")]
use std::error::Error;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
#[cfg(feature = "stores")]
use idem_axum::Store;
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
#[cfg(feature = "stores")]
use idem_redis::RedisStore;
#[cfg(feature = "stores")]
use idem_sqlx::{PostgresStore, SqliteStore};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, signal, sync::Mutex};

#[idempotent(header = "Idempotency-Key", ttl = "24h", fingerprint = body + path)]
async fn create_order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
    (StatusCode::CREATED, Json(orders.create(new).await))
}

/// How many orders there are, and which.
async fn list_orders(State(orders): State<Orders>) -> Json<Listing> {
    let orders = orders.0.lock().await.clone();
    Json(Listing { count: orders.len(), orders })
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), String> {
    let idempotency = idempotency(&std::env::var("STORE").unwrap_or_else(|_| "memory".to_owned())).await?;
    let listener = listen().await?;
    let address = listener.local_addr().map_err(|error| format!("The listener has no address: {error}."))?;
    println!("{}", welcome(&format!("http://{address}/orders")));

    let app = Router::new()
        .route("/orders", post(create_order).get(list_orders))
        .layer(IdempotencyLayer::new(idempotency.clone()))
        .with_state(Orders::default());
    let server = axum::serve(listener, app).with_graceful_shutdown(ctrl_c());
    server.await.map_err(|error| format!("The server failed: {error}."))?;

    // The server has responded to its clients. What runs now are handlers whose client hung up.
    println!("No request is open. Handlers still running: {}; waiting for them.", idempotency.executions());
    match idempotency.drain_until(second_ctrl_c()).await {
        Ok(()) => println!("Drained: every handler that started has run to its end."),
        Err(error) => println!("Not drained: {error}."),
    }
    Ok(())
}

/// Where claims and records are kept: what changes when a service grows beyond one process.
async fn idempotency(store: &str) -> Result<Idempotency, String> {
    if store == "memory" { Ok(Idempotency::in_memory()) } else { beyond_this_process(store).await }
}

#[cfg(feature = "stores")]
async fn beyond_this_process(store: &str) -> Result<Idempotency, String> {
    Ok(match store.split_once("://") {
        Some(("redis", _)) => shared(RedisStore::connect(store).await.map_err(unusable)?),
        Some(("postgres" | "postgresql", _)) => {
            let store = PostgresStore::connect(store).await.map_err(unusable)?;
            store.migrate().await.map_err(unusable)?;
            println!("The table for claims and records is up to date: it was migrated, if it had to be.");
            tokio::spawn(store.cleanup());
            shared(store)
        }
        Some(("sqlite", path)) => {
            let store = SqliteStore::open(path).await.map_err(unusable)?;
            store.migrate().await.map_err(unusable)?;
            println!("The table for claims and records is up to date: it was migrated, if it had to be.");
            tokio::spawn(store.cleanup());
            shared(store)
        }
        // Not shown, since a URL may have a password.
        _ => return Err("STORE is not a store. Try memory, redis://.., postgres://.. or sqlite://path.".to_owned()),
    })
}

/// Other services may use the same server: the namespace keeps their keys apart.
#[cfg(feature = "stores")]
fn shared(store: impl Store) -> Idempotency {
    Idempotency::builder(store).namespace("orders").build()
}

/// So that a first look at this example need not build the clients of three databases.
#[cfg(not(feature = "stores"))]
async fn beyond_this_process(_: &str) -> Result<Idempotency, String> {
    Err("This build keeps everything in memory. For another STORE: cargo run --example orders --features stores"
        .to_owned())
}

#[cfg(feature = "stores")]
fn unusable(error: impl Error) -> String {
    format!("STORE cannot be used: {error}.")
}

async fn listen() -> Result<TcpListener, String> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let port = port.parse().map_err(|_| format!("PORT is `{port}`, which is not a port. Try PORT=3001."))?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        format!("Cannot listen on 127.0.0.1:{port}: {error}. Choose another port: PORT=3001 cargo run --example orders")
    })
}

async fn ctrl_c() {
    match signal::ctrl_c().await {
        Ok(()) => println!("\nStopping: new requests are not taken any more."),
        Err(error) => println!("Stopping, since ctrl-c could not be listened for: {error}."),
    }
}

async fn second_ctrl_c() {
    // If ctrl-c cannot be listened for, the drain is not cut short by it either.
    if signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn welcome(url: &str) -> String {
    let json = "-H 'Content-Type: application/json'";
    let tea = r#"-d '{"item":"tea","quantity":2}'"#;
    let coffee = r#"-d '{"item":"coffee","quantity":1}'"#;
    format!(
        "\
The orders are at {url}. Try this in another terminal; ctrl-c stops the service.

# A first request: 201, the order is made.
curl -i {url} -H 'Idempotency-Key: order-1' {json} {tea}

# The same line again, as a client that saw no response: the same response, marked, and no second order.
curl -i {url} -H 'Idempotency-Key: order-1' {json} {tea}

# The same key with another body: 422.
curl -i {url} -H 'Idempotency-Key: order-1' {json} {coffee}

# A key with a space, which is not allowed: 400.
curl -i {url} -H 'Idempotency-Key: order 1' {json} {tea}

# A body that the handler's extractor rejects, 422, does not use up the key: the corrected request is served, 201.
curl -i {url} -H 'Idempotency-Key: order-2' {json} -d '{{\"item\":\"coffee\"}}'
curl -i {url} -H 'Idempotency-Key: order-2' {json} {coffee}

# Without a key nothing protects a request: 201, and one more order each time.
curl -i {url} {json} {tea}

# How many orders there are, and which.
curl -i {url}
"
    )
}

/// Where the orders are kept.
#[derive(Clone, Default)]
struct Orders(Arc<Mutex<Vec<Order>>>);

impl Orders {
    async fn create(&self, NewOrder { item, quantity }: NewOrder) -> Order {
        let mut orders = self.0.lock().await;
        let order = Order { id: orders.len() + 1, item, quantity };
        orders.push(order.clone());
        order
    }
}

#[derive(Deserialize)]
struct NewOrder {
    item: String,
    quantity: u32,
}

#[derive(Clone, Serialize)]
struct Order {
    id: usize,
    item: String,
    quantity: u32,
}

#[derive(Serialize)]
struct Listing {
    count: usize,
    orders: Vec<Order>,
}

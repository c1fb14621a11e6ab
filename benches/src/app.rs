//! The handler that is measured: once bare, once with the attribute, over the same body.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, MemoryStore, idempotent};
use serde::{Deserialize, Serialize};

/// Where every request goes.
pub const PATH: &str = "/orders";

/// The state of the handler. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Shop {
    executions: Arc<AtomicU64>,
    /// A body that starts never ends, so that its key stays in flight.
    stuck: bool,
}

impl Shop {
    /// A shop whose handler answers at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shop whose handler never ends.
    pub fn stuck() -> Self {
        Self { stuck: true, ..Self::default() }
    }

    /// How often the body of the handler was started.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::SeqCst)
    }
}

/// What the handler reads.
#[derive(Debug, Deserialize)]
pub struct NewOrder {
    item: String,
    quantity: u32,
}

/// What it answers.
#[derive(Debug, Serialize)]
pub struct Order {
    id: u64,
    length: usize,
    quantity: u32,
}

/// The body of both handlers. It does next to nothing, so that what stands around it shows.
async fn create(shop: Shop, new: NewOrder) -> (StatusCode, Json<Order>) {
    let id = shop.executions.fetch_add(1, Ordering::SeqCst);
    if shop.stuck {
        future::pending::<()>().await;
    }
    (StatusCode::CREATED, Json(Order { id, length: new.item.len(), quantity: new.quantity }))
}

async fn bare_handler(State(shop): State<Shop>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
    create(shop, new).await
}

#[idempotent]
async fn idempotent_handler(State(shop): State<Shop>, Json(new): Json<NewOrder>) -> (StatusCode, Json<Order>) {
    create(shop, new).await
}

/// The handler alone.
pub fn bare(shop: &Shop) -> Router {
    Router::new().route(PATH, post(bare_handler)).with_state(shop.clone())
}

/// The handler with `#[idempotent]` over a [`MemoryStore`], as the README shows it.
pub fn idem(shop: &Shop) -> Router {
    // Room for every key of a long run: a store that is full would refuse, which is another row.
    let store = MemoryStore::builder().max_entries(20_000_000).max_bytes(16 << 30).build();
    Router::new()
        .route(PATH, post(idempotent_handler))
        .layer(IdempotencyLayer::new(Idempotency::new(store)))
        .with_state(shop.clone())
}

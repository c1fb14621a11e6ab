//! The handler that is measured: once bare, once with the attribute, over the same body.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use serde::{Deserialize, Serialize};

/// Where every request goes.
pub const PATH: &str = "/orders";

/// The state of the handler. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Shop {
    counts: Arc<Counts>,
    pace: Pace,
    padding: usize,
}

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    ended: AtomicU64,
}

/// How long the handler takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// It responds at once.
    #[default]
    Prompt,
    /// It takes a while.
    Slow(Duration),
    /// It never ends, so that its key stays in flight.
    Stuck,
}

impl Shop {
    /// A shop whose handler responds at this pace.
    pub fn new(pace: Pace) -> Self {
        Self { pace, ..Self::default() }
    }

    /// A shop whose responses are larger by `padding` bytes.
    #[must_use]
    pub fn with_padding(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// How often the handler was started.
    pub fn executions(&self) -> u64 {
        self.counts.started.load(Ordering::SeqCst)
    }

    /// How often it reached its end.
    pub fn ended(&self) -> u64 {
        self.counts.ended.load(Ordering::SeqCst)
    }
}

/// What the handler reads.
#[derive(Debug, Deserialize)]
pub struct NewOrder {
    item: String,
    quantity: u32,
}

/// What it responds with.
#[derive(Debug, Serialize)]
pub struct Order {
    id: u64,
    length: usize,
    quantity: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    padding: String,
}

/// What both handlers do: next to nothing, so that the cost of the layers around them shows.
pub(crate) async fn create(shop: Shop, new: NewOrder) -> (StatusCode, Json<Order>) {
    let id = shop.counts.started.fetch_add(1, Ordering::SeqCst);
    match shop.pace {
        Pace::Prompt => {}
        Pace::Slow(pause) => tokio::time::sleep(pause).await,
        Pace::Stuck => future::pending().await,
    }
    shop.counts.ended.fetch_add(1, Ordering::SeqCst);
    let padding = "p".repeat(shop.padding);
    (StatusCode::CREATED, Json(Order { id, length: new.item.len(), quantity: new.quantity, padding }))
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

/// The handler with `#[idempotent]` in memory, as the README shows it.
pub fn idem(shop: &Shop) -> Router {
    Router::new()
        .route(PATH, post(idempotent_handler))
        .layer(IdempotencyLayer::new(Idempotency::in_memory()))
        .with_state(shop.clone())
}

//! The application that every input is sent to, and what must hold after every one of them.

use std::sync::{Mutex, Once};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{any, get, post};
use bytes::Bytes;
use idem_axum::idempotent;
use idem_tests::{Probe, Reply, Server, get as fetch};

#[idempotent(required)]
async fn order(State(probe): State<Probe>, _body: Bytes) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", probe.run().await))
}

#[idempotent]
async fn read(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

#[idempotent(scope = header("X-Tenant"))]
async fn tenant(State(probe): State<Probe>, _body: Bytes) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", probe.run().await))
}

#[idempotent(fingerprint = body + header("Content-Type"))]
async fn typed(State(probe): State<Probe>, _body: Bytes) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", probe.run().await))
}

#[idempotent(fingerprint = json)]
async fn json(State(probe): State<Probe>, _body: Bytes) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", probe.run().await))
}

async fn bare(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

pub fn routes() -> Router<Probe> {
    Router::new()
        .route("/order", post(order).put(order))
        .route("/elsewhere", post(order))
        .route("/read", get(read))
        .route("/tenant", post(tenant))
        .route("/typed", post(typed))
        .route("/json", post(json))
        .route("/bare", get(bare))
        .route("/alive", any(async || "alive"))
        .fallback(order)
        .layer(DefaultBodyLimit::max(1024))
}

/// A response of the runtime is small, whatever came in.
#[track_caller]
pub fn assert_small(reply: &Reply) {
    let headers: usize = reply.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    assert!(headers + reply.body.len() <= 1024, "{} bytes", headers + reply.body.len());
}

/// The server responds, and nothing but an assertion of a test has panicked.
pub async fn assert_alive(server: &Server) {
    assert_eq!(fetch("/alive").at(server).await.text(), "alive");
    let panics = PANICS.lock().expect("not poisoned");
    assert!(panics.is_empty(), "{panics:?}");
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on panics outside the tests are seen by [`assert_alive`]. A handler that panics on purpose is in the tests.
pub fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|location| location.file().starts_with("tests")) {
                PANICS.lock().expect("not poisoned").push(panic.to_string());
            }
            before(panic);
        }));
    });
}

/// Says which input it was.
pub struct Named(pub String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input {}", self.0);
        }
    }
}

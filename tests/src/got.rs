//! What a request got, in one word, and handlers that wait until they may continue.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use idem_axum::{Idempotency, IdempotencyLayer, Refusal};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt;

pub const REPLAYED: &str = "idempotent-replayed";

pub fn app(routes: Router) -> Router {
    routes.layer(IdempotencyLayer::new(Idempotency::in_memory()))
}

/// Sends a request with the key `a` and these headers.
pub async fn send(app: &Router, path: &str, headers: &[(&str, &str)], body: &'static str) -> Response<Body> {
    let mut request = Request::post(path).header("Idempotency-Key", "a");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

/// What a request got: a run of the handler, a replay, or the code of a refusal.
#[derive(Debug, PartialEq)]
pub enum ResponseKind {
    Ran,
    Replay,
    Refused(&'static str),
}

use ResponseKind::{Ran, Refused, Replay};

pub const MISMATCH: ResponseKind = Refused("idempotency_key_mismatch");
pub const POLICY_CHANGED: ResponseKind = Refused("idempotency_policy_changed");

pub fn got(response: &Response<Body>) -> ResponseKind {
    match response.extensions().get::<Refusal>() {
        Some(refusal) => Refused(refusal.code()),
        None if response.headers().contains_key(REPLAYED) => Replay,
        None => Ran,
    }
}

pub async fn json_of(response: Response<Body>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// Handlers that say that they started, and end when they may.
#[derive(Clone)]
pub struct Gate {
    pub started: Arc<Notify>,
    pub may_end: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { started: Arc::default(), may_end: Arc::new(Semaphore::new(0)) }
    }
}

impl Gate {
    pub async fn pass(&self) -> &'static str {
        self.started.notify_one();
        self.may_end.acquire().await.unwrap().forget();
        "done"
    }
}

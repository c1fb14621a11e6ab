//! `#[tracing::instrument]` above sees the arguments; below, with `skip_all`, its span
//! covers replays too.

use axum::{Router, http::Method, routing::post};
use idem_axum::idempotent;

#[tracing::instrument(skip(body), fields(length = body.len()))]
#[idempotent]
async fn above(method: Method, body: String) -> String {
    format!("{method} {body}")
}

#[idempotent]
#[tracing::instrument(skip_all)]
async fn below(method: Method, body: String) -> String {
    format!("{method} {body}")
}

#[idempotent]
#[tracing::instrument(skip_all, fields(kind = "order"))]
async fn below_with_fields(method: Method, body: String) -> String {
    format!("{method} {body}")
}

#[idempotent(scope = body.len())]
#[tracing::instrument(skip_all)]
async fn below_with_scope(body: String) -> Result<String, String> {
    Err(body)
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/above", post(above))
        .route("/below", post(below))
        .route("/fields", post(below_with_fields))
        .route("/scope", post(below_with_scope));
}

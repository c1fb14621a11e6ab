//! Every kind of argument: none, many, in any pattern, with or without the request's body.

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::{Multipart, OriginalUri, Path, Query, Request, State, rejection::JsonRejection},
    http::{HeaderMap, Method, Uri},
    routing::post,
};
use idem_axum::{IdempotencyKey, idempotent};
use serde::Deserialize;

#[derive(Clone)]
struct App;

#[derive(Deserialize)]
struct Order {
    id: u64,
    lines: Vec<String>,
}

#[idempotent]
async fn none() {}

#[idempotent]
async fn parts(method: Method) -> String {
    method.to_string()
}

#[idempotent]
async fn state(State(_app): State<App>) {}

#[idempotent]
async fn patterns(_: Method, Path((_, id)): Path<(u8, u64)>, mut text: String) -> String {
    text.push_str(&id.to_string());
    text
}

#[idempotent]
async fn nested(Json(Order { id, mut lines, .. }): Json<Order>) -> String {
    lines.push(id.to_string());
    lines.concat()
}

#[idempotent]
async fn references(ref uri: Uri, ref text: String) -> String {
    format!("{uri} {text}")
}

#[idempotent]
async fn attributes(#[allow(unused_variables)] method: Method, #[allow(unused_variables)] text: String) {}

#[idempotent]
async fn tuples((method, uri): (Method, Uri), (headers, body): (HeaderMap, Bytes)) -> String {
    format!("{method} {uri} {} {}", headers.len(), body.len())
}

#[idempotent]
async fn fallible(
    query: Result<Query<Order>, axum::extract::rejection::QueryRejection>,
    order: Result<Json<Order>, JsonRejection>,
) -> String {
    format!("{} {}", query.is_ok(), order.is_ok())
}

#[idempotent]
async fn optional(key: Option<IdempotencyKey>, order: Option<Json<Order>>) -> String {
    format!("{} {}", key.is_some(), order.is_some())
}

#[idempotent]
async fn request(request: Request) -> String {
    request.uri().to_string()
}

#[idempotent]
async fn multipart(mut parts: Multipart) -> String {
    let mut count = 0;
    while let Ok(Some(_)) = parts.next_field().await {
        count += 1;
    }
    format!("{count}")
}

#[idempotent]
async fn form(Form(order): Form<Order>) -> String {
    order.id.to_string()
}

#[idempotent]
#[allow(clippy::too_many_arguments)]
async fn sixteen(
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    _: Method,
    OriginalUri(uri): OriginalUri,
    body: String,
) -> String {
    format!("{uri} {body}")
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/none", post(none))
        .route("/parts", post(parts))
        .route("/state", post(state))
        .route("/patterns/{a}/{b}", post(patterns))
        .route("/nested", post(nested))
        .route("/references", post(references))
        .route("/attributes", post(attributes))
        .route("/tuples", post(tuples))
        .route("/fallible", post(fallible))
        .route("/optional", post(optional))
        .route("/request", post(request))
        .route("/multipart", post(multipart))
        .route("/form", post(form))
        .route("/sixteen", post(sixteen))
        .with_state(App);
}

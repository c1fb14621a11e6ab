//! Expressions for the key.

#![deny(unused, clippy::all)]

use axum::{Extension, Json, Router, extract::Path, routing::post};
use idem_axum::{IdempotencyKey, Policy, idempotent};
use std::fmt::Display;

#[derive(Clone, serde::Deserialize)]
struct Event {
    id: String,
    parent: Option<u64>,
}

impl Event {
    fn key(&self) -> &str {
        &self.id
    }
}

#[idempotent(key = event.id, policy = Policy::WEBHOOK)]
async fn field(Json(event): Json<Event>) -> String {
    event.id
}

#[idempotent(key = event.parent, required)]
async fn option(Json(event): Json<Event>) -> String {
    event.id
}

/// A method of the same name as that of generated code.
#[idempotent(key = event.key(), scope = (tenant, path))]
async fn method(Extension(tenant): Extension<u64>, Json(event): Json<Event>) -> String {
    let key = IdempotencyKey::from_text(event.key());
    key.map(|key| key.derive(&tenant.to_string()).as_str().to_owned()).unwrap_or_default()
}

#[idempotent(key = event.parent.as_ref().map(|parent| format!("{parent}/{}", event.id)))]
async fn made(Json(event): Json<Event>) -> String {
    event.id
}

#[idempotent(key = format!("{id}").trim())]
async fn temporary(Path(id): Path<u64>) -> String {
    id.to_string()
}

#[idempotent(key = format!("{type}"), scope = (r#path, path))]
async fn raw_names(Path(r#type): Path<u64>, Extension(path): Extension<u64>) -> String {
    format!("{path}/{type}")
}

#[idempotent(key = id)]
async fn generic<T: Display + Clone + Send + Sync + 'static>(Extension(id): Extension<T>) -> String {
    id.to_string()
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/field", post(field))
        .route("/option", post(option))
        .route("/method", post(method))
        .route("/made", post(made))
        .route("/temporary/{id}", post(temporary))
        .route("/raw_names/{type}", post(raw_names))
        .route("/generic", post(generic::<u64, _, _>));
}

use axum::Json;
use idem_axum::idempotent;

#[idempotent(key = ids)]
async fn create(Json(ids): Json<Vec<u64>>) {}

#[idempotent(key = ids)]
async fn optional(Json(ids): Json<Option<Vec<u64>>>) {}

fn main() {}

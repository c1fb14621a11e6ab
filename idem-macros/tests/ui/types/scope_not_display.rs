use axum::Json;
use idem_axum::idempotent;

#[idempotent(scope = ids)]
async fn create(Json(ids): Json<Vec<u64>>) {}

fn main() {}

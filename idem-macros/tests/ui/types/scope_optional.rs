use axum::Json;
use idem_axum::idempotent;

#[idempotent(scope = user)]
async fn create(Json(user): Json<Option<u64>>) {}

fn main() {}

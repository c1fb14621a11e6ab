use idem_axum::{IdempotencyKey, idempotent};

#[idempotent(key = body)]
async fn create(key: IdempotencyKey, body: String) -> String {
    body
}

#[idempotent(key = body)]
async fn other(key: Option<idem_axum::IdempotencyKey>, body: String) -> String {
    body
}

fn main() {}

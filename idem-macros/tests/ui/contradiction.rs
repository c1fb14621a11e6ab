//! Options that exclude each other.

use idem_axum::{IdempotencyKey, idempotent};

#[idempotent(fingerprint = none + body)]
async fn fingerprint_none(body: String) -> String {
    body
}

#[idempotent(key = body, header = "X-Key", min_key = 8)]
async fn key_and_header(body: String) -> String {
    body
}

#[idempotent(key = body)]
async fn key_and_its_extractor_create(key: IdempotencyKey, body: String) -> String {
    body
}

#[idempotent(key = body)]
async fn key_and_its_extractor_other(key: Option<idem_axum::IdempotencyKey>, body: String) -> String {
    body
}

#[idempotent(record = all + 200)]
async fn record_added_twice(body: String) -> String {
    body
}

#[idempotent(record = success - success)]
async fn record_nothing(body: String) -> String {
    body
}

#[idempotent(record = success - 404)]
async fn record_taken_from_nothing(body: String) -> String {
    body
}

#[idempotent(replay = status + headers, replay_status = 200)]
async fn replay_status_without_body(body: String) -> String {
    body
}

#[idempotent(scope = (global, header("X-Tenant")))]
async fn scope_global_and_header(body: String) -> String {
    body
}

fn main() {}

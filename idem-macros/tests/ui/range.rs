//! Values that are too small, too large, or of no use.

use idem_axum::idempotent;

#[idempotent(max_response = "0")]
async fn max_response_zero(body: String) -> String {
    body
}

#[idempotent(min_key = 256)]
async fn min_key_too_long(body: String) -> String {
    body
}

#[idempotent(min_key = 0)]
async fn min_key_zero(body: String) -> String {
    body
}

#[idempotent(mismatch = 200)]
async fn mismatch_not_an_error(body: String) -> String {
    body
}

#[idempotent(record = all - 999)]
async fn record_status(body: String) -> String {
    body
}

#[idempotent(in_flight = reject(302))]
async fn reject_not_an_error(body: String) -> String {
    body
}

#[idempotent(replay_status = 100)]
async fn replay_status_informational(body: String) -> String {
    body
}

#[idempotent(timeout = "60000d")]
async fn timeout_too_long(body: String) -> String {
    body
}

#[idempotent(timeout = "0s")]
async fn timeout_zero(body: String) -> String {
    body
}

#[idempotent(ttl = "18446744073709551615w")]
async fn ttl_overflow(body: String) -> String {
    body
}

#[idempotent(ttl = "60000d")]
async fn ttl_too_long(body: String) -> String {
    body
}

#[idempotent(ttl = "0s")]
async fn ttl_zero(body: String) -> String {
    body
}

#[idempotent(in_flight = wait("0s"))]
async fn wait_zero(body: String) -> String {
    body
}

fn main() {}

//! No header value has spaces at its ends.
use idem_axum::idempotent;

#[idempotent(replay_with = header("X-Retry", " no"))]
async fn handler() {}

fn main() {}

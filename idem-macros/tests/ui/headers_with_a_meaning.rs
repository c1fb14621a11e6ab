//! Headers that a replay has as they were recorded, or never.
use idem_axum::idempotent;

#[idempotent(replay_header = "Location")]
async fn marker() {}

#[idempotent(replay_with = header("Content-Length", "5"))]
async fn framing() {}

#[idempotent(replay_with = header("ETag", "\"1\""))]
async fn of_the_record() {}

#[idempotent(ttl = "1h", replay_with = header("X-Retry", "no", all - 500) + header("Vary", "Origin", 500), required)]
async fn second_of_two() {}

fn main() {}

use idem_axum::idempotent;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(60);

#[idempotent(ttl = TTL)]
async fn create(body: String) -> String {
    body
}

fn main() {}

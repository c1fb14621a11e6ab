use std::time::Duration;

use idem_runtime::{Idempotency, RefusalReason, idempotent};

const TTL: Duration = Duration::from_secs(60);

#[idempotent(engine = engine, key = order, scope = "ship", cache = true, ttl = TTL, fingerprint)]
async fn ship(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = order, scope = "ship", in_flight = wait(TTL))]
async fn pack(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

fn main() {}

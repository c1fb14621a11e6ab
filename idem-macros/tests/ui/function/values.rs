use idem_runtime::{Idempotency, RefusalReason, idempotent};

#[idempotent(engine = engine, key = "order", scope = ("ship", order), fingerprint = body + path, in_flight = reject(423), ttl = "0s")]
async fn ship(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = find(order).await?, scope = "ship", in_flight = later)]
async fn pack(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

fn main() {}

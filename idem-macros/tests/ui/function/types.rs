use idem_runtime::{Idempotency, RefusalReason, idempotent};

struct NoJson;

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn value(engine: Idempotency, order: u64) -> Result<NoJson, RefusalReason> {
    Ok(NoJson)
}

#[derive(Debug)]
struct ShipError;

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn error(engine: Idempotency, order: u64) -> Result<u64, ShipError> {
    Ok(order)
}

#[idempotent(engine = order, key = order, scope = "ship")]
async fn no_engine(order: u64) -> Result<u64, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = order.id, scope = "ship")]
async fn no_such_field(engine: Idempotency, order: u64) -> Result<u64, RefusalReason> {
    Ok(order)
}

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn no_text(engine: Idempotency, order: Option<u64>) -> Result<u64, RefusalReason> {
    Ok(order.unwrap_or_default())
}

#[idempotent(engine = engine, key = order, scope = "ship")]
async fn another_value(engine: Idempotency, order: u64) -> Result<u64, RefusalReason> {
    Ok("text")
}

fn main() {}

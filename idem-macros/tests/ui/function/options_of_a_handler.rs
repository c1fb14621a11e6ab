use idem_runtime::{Idempotency, RefusalReason, idempotent};

#[idempotent(
    engine = engine,
    key = order,
    scope = "ship",
    policy = POLICY,
    header = "Idempotency-Key",
    min_key = 8,
    required,
    mismatch = 409,
    record = success,
    replay = body,
    replay_status = 200,
    replay_header = "X-Replayed",
    replay_with = header("A", "b"),
    max_response = "1MiB",
    timeout = "30s",
    errors = render,
    shadow
)]
async fn ship(engine: Idempotency, order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

fn main() {}

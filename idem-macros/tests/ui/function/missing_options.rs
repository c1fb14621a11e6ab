use idem_runtime::{RefusalReason, idempotent};

#[idempotent(ttl = "7d")]
async fn ship(order: String) -> Result<String, RefusalReason> {
    Ok(order)
}

fn main() {}

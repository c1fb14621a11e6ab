use idem_axum::idempotent;

const TTL: u64 = 24;

#[idempotent(policy = TTL)]
async fn create() {}

fn main() {}

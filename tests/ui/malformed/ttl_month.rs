use idem_axum::idempotent;

#[idempotent(ttl = "1M")]
async fn create(body: String) -> String {
    body
}

#[idempotent(ttl = "1 year")]
async fn other(body: String) -> String {
    body
}

fn main() {}

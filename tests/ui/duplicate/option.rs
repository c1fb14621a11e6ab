use idem_axum::idempotent;

#[idempotent(ttl = "24h", required, ttl = "1h")]
async fn create(body: String) -> String {
    body
}

fn main() {}

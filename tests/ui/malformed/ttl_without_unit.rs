use idem_axum::idempotent;

#[idempotent(ttl = "24")]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(ttl =, required)]
async fn create(body: String) -> String {
    body
}

fn main() {}

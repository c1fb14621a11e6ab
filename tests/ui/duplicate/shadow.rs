use idem_axum::idempotent;

#[idempotent(shadow, ttl = "1h", shadow)]
async fn create(body: String) -> String {
    body
}

fn main() {}

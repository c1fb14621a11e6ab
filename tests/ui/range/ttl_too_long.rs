use idem_axum::idempotent;

#[idempotent(ttl = "1000years")]
async fn create(body: String) -> String {
    body
}

fn main() {}

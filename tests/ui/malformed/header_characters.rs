use idem_axum::idempotent;

#[idempotent(header = "Idempotency Key")]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(scope = "orders")]
async fn create(body: String) -> String {
    body
}

fn main() {}

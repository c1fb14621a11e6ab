use idem_axum::idempotent;

#[idempotent(mismatch = 200)]
async fn create(body: String) -> String {
    body
}

fn main() {}

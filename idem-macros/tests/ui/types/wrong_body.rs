use idem_axum::idempotent;

#[idempotent]
async fn create(body: String) -> Vec<u8> {
    body
}

fn main() {}

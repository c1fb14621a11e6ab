use idem_axum::idempotent;

#[idempotent]
pub async fn create(body: String, ...) -> String {
    body
}

fn main() {}

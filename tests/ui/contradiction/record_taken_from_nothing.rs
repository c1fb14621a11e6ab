use idem_axum::idempotent;

#[idempotent(record = success - 404)]
async fn create(body: String) -> String {
    body
}

fn main() {}

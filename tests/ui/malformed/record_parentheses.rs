use idem_axum::idempotent;

#[idempotent(record = all - (400 + 422))]
async fn create(body: String) -> String {
    body
}

fn main() {}

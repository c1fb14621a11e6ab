use idem_axum::idempotent;

#[idempotent(record = -400)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(required = 3)]
async fn create(body: String) -> String {
    body
}

fn main() {}

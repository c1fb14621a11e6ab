use idem_axum::idempotent;

#[idempotent(required, required = false)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(header = X_KEY)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(required = false, shadow = false)]
async fn create(body: String) -> String {
    body
}

fn main() {}

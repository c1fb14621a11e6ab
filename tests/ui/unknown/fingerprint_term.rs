use idem_axum::idempotent;

#[idempotent(fingerprint = method + bdoy)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(fingerprint = json())]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(fingerprint = body + header)]
async fn create(body: String) -> String {
    body
}

fn main() {}

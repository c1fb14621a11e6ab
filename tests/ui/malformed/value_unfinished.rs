use idem_axum::idempotent;

#[idempotent(fingerprint = body +)]
async fn create(body: String) -> String {
    body
}

fn main() {}

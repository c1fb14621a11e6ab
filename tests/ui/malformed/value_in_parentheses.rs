use idem_axum::idempotent;

#[idempotent(fingerprint(body, path))]
async fn create(body: String) -> String {
    body
}

fn main() {}

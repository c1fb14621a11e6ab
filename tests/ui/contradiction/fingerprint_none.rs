use idem_axum::idempotent;

#[idempotent(fingerprint = none + body)]
async fn create(body: String) -> String {
    body
}

fn main() {}

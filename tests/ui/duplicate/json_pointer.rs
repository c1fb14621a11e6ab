use idem_axum::idempotent;

#[idempotent(fingerprint = json("/id") + json("/lines", "/id"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

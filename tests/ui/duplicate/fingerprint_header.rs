use idem_axum::idempotent;

#[idempotent(fingerprint = header("X-Version") + header("x-version"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

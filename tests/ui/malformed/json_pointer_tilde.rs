use idem_axum::idempotent;

#[idempotent(fingerprint = json("/a~b"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

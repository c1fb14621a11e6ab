use idem_axum::idempotent;

#[idempotent(fingerprint = json("order/id"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(in_flight = block("5s"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

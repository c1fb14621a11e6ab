use idem_axum::idempotent;

#[idempotent(in_flight = wait("0s"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

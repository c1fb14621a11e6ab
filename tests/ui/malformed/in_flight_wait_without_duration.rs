use idem_axum::idempotent;

#[idempotent(in_flight = wait)]
async fn create(body: String) -> String {
    body
}

fn main() {}

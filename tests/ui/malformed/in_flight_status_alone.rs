use idem_axum::idempotent;

#[idempotent(in_flight = 423)]
async fn create(body: String) -> String {
    body
}

fn main() {}

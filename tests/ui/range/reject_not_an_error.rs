use idem_axum::idempotent;

#[idempotent(in_flight = reject(302))]
async fn create(body: String) -> String {
    body
}

fn main() {}

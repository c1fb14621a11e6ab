use idem_axum::idempotent;

#[idempotent(in-flight = reject)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(timeout = "0s")]
async fn create(body: String) -> String {
    body
}

fn main() {}

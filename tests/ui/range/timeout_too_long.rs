use idem_axum::idempotent;

#[idempotent(timeout = "60000d")]
async fn create(body: String) -> String {
    body
}

fn main() {}

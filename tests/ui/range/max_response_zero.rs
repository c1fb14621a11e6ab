use idem_axum::idempotent;

#[idempotent(max_response = "0")]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(max_response = "1TiB")]
async fn create(body: String) -> String {
    body
}

fn main() {}

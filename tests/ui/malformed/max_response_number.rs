use idem_axum::idempotent;

#[idempotent(max_response = 1048576)]
async fn create(body: String) -> String {
    body
}

fn main() {}

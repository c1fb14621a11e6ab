use idem_axum::idempotent;

#[idempotent(key = body, header = "X-Key", min_key = 8)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(min_key = 0)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(min_key = 256)]
async fn create(body: String) -> String {
    body
}

fn main() {}

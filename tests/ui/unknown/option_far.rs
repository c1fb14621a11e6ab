use idem_axum::idempotent;

#[idempotent(cache = true)]
async fn create(body: String) -> String {
    body
}

fn main() {}

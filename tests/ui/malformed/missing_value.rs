use idem_axum::idempotent;

#[idempotent(ttl)]
async fn create(body: String) -> String {
    body
}

fn main() {}

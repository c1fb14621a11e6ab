use idem_axum::idempotent;

#[idempotent(ttl = "a day")]
async fn create(body: String) -> String {
    body
}

fn main() {}

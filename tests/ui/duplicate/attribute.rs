use idem_axum::idempotent;

#[idempotent]
#[idempotent(ttl = "1h")]
async fn create(body: String) -> String {
    body
}

fn main() {}

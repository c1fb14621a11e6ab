use idem_axum::idempotent;

#[idempotent(ttl = "18446744073709551615w")]
async fn create(body: String) -> String {
    body
}

fn main() {}

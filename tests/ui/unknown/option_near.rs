use idem_axum::idempotent;

#[idempotent(tll = "24h")]
async fn create(body: String) -> String {
    body
}

fn main() {}

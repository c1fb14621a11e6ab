use idem_axum::idempotent;

#[idempotent(header = "")]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(crate = "idem_axum")]
async fn create(body: String) -> String {
    body
}

fn main() {}

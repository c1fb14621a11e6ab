use idem_axum::idempotent;

#[idempotent(policy = Policy::new())]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(scope = ())]
async fn create(body: String) -> String {
    body
}

fn main() {}

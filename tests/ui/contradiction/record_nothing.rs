use idem_axum::idempotent;

#[idempotent(record = success - success)]
async fn create(body: String) -> String {
    body
}

fn main() {}

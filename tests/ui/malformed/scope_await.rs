use idem_axum::idempotent;

#[idempotent(scope = body.tenant().await)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(scope = (global, header("X-Tenant")))]
async fn create(body: String) -> String {
    body
}

fn main() {}

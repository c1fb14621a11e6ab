use idem_axum::idempotent;

#[idempotent(scope = (header("X-Tenant"), body.len()))]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(scope = (path, global, path))]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(errors = "render")]
async fn create(body: String) -> String {
    body
}

fn main() {}

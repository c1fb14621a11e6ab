use idem_axum::idempotent;

#[idempotent(key = load(&body).await)]
async fn create(body: String) -> String {
    body
}

fn main() {}

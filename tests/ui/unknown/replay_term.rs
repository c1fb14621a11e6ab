use idem_axum::idempotent;

#[idempotent(replay = status + header)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(replay = body + status + body)]
async fn create(body: String) -> String {
    body
}

fn main() {}

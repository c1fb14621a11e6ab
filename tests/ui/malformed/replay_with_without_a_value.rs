use idem_axum::idempotent;

#[idempotent(replay_with = header("X-Should-Retry"))]
async fn create(body: String) -> String {
    body
}

fn main() {}

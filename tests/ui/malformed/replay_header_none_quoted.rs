use idem_axum::idempotent;

#[idempotent(replay_header = "none")]
async fn create(body: String) -> String {
    body
}

fn main() {}

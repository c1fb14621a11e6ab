use idem_axum::idempotent;

#[idempotent(replay_status = 100)]
async fn create(body: String) -> String {
    body
}

fn main() {}

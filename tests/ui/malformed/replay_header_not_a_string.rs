use idem_axum::idempotent;

#[idempotent(replay_header = off)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(replay = status + headers, replay_status = 200)]
async fn create(body: String) -> String {
    body
}

fn main() {}

use idem_axum::idempotent;

#[idempotent(timout = "30s", keys = body)]
async fn create(body: String) -> String {
    body
}

fn main() {}

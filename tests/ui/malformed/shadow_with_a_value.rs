use idem_axum::idempotent;

#[idempotent(shadow = "for a week")]
async fn create(body: String) -> String {
    body
}

fn main() {}

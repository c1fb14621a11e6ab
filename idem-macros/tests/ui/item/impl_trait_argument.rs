use idem_axum::idempotent;

#[idempotent]
pub async fn create(State(orders): State<impl Clone>, body: String) -> String {
    body
}

fn main() {}

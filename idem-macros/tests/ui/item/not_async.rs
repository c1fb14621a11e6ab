use idem_axum::idempotent;

#[idempotent]
fn create(body: String) -> String {
    body
}

fn main() {}

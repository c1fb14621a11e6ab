use idem_axum::idempotent;

#[idempotent]
pub async extern "C" fn create(body: String) -> String {
    body
}

fn main() {}

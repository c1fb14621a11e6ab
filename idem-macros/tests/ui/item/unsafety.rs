use idem_axum::idempotent;

#[idempotent]
pub async unsafe fn create(body: String) -> String {
    body
}

fn main() {}

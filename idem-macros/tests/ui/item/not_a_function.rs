use idem_axum::idempotent;

#[idempotent]
pub struct Order {
    pub id: u64,
}

fn main() {}

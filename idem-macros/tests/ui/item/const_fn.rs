use idem_axum::idempotent;

#[idempotent]
pub const fn create() {}

fn main() {}

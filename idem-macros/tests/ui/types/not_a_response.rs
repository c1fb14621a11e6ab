use idem_axum::idempotent;

struct Order;

#[idempotent]
async fn create() -> Order {
    Order
}

fn main() {}

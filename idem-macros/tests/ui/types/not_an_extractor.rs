use axum::{Router, routing::post};
use idem_axum::idempotent;

struct Order;

#[idempotent]
async fn create(order: Order, body: String) -> String {
    body
}

fn main() {
    let _: Router = Router::new().route("/orders", post(create));
}

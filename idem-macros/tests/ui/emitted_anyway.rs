//! The function stays, so its callers have no errors of their own and its own mistakes still show.

use axum::{Router, routing::post};
use idem_axum::idempotent;

struct Orders;

impl Orders {
    #[idempotent(ttl = 24)]
    async fn create(body: String) -> String {
        body.missing()
    }
}

fn main() {
    let _: Router = Router::new().route("/orders", post(Orders::create));
}

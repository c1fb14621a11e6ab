//! Only an annotated handler has a policy that could be listed.

use axum::{Json, http::Method};
use idem_axum::Policies;

async fn pay() {}

async fn create(_: Json<String>) -> &'static str {
    "created"
}

fn main() {
    let policies =
        Policies::<()>::at("/idempotency").endpoint(Method::POST, "/pay", pay).endpoint(Method::POST, "/create", create);
    let _ = policies.mount(Method::POST, "/pay", pay);
}

//! `#[utoipa::path]` above sees the function as it was written.

use axum::{Json, Router, extract::Path, routing::post};
use idem_axum::idempotent;
use utoipa::{OpenApi, ToSchema};

#[derive(serde::Deserialize, serde::Serialize, ToSchema)]
struct Order {
    id: u64,
}

/// Creates an order.
#[utoipa::path(post, path = "/orders/{shop}", params(("shop" = u64, Path)), responses((status = 200, body = Order)))]
#[idempotent(ttl = "1h", scope = shop)]
async fn create(Path(shop): Path<u64>, Json(order): Json<Order>) -> Json<Order> {
    let _ = shop;
    Json(order)
}

#[derive(OpenApi)]
#[openapi(paths(create))]
struct Api;

#[test]
fn compiles() {
    let _: Router = Router::new().route("/orders/{shop}", post(create));
    let api = Api::openapi();
    let operation = api.paths.paths["/orders/{shop}"].post.as_ref().unwrap();
    assert_eq!(operation.summary.as_deref(), Some("Creates an order."));
}

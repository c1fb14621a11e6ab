//! Expressions over the handler's arguments.

use axum::{
    Extension, Json, Router,
    extract::{Path, State},
    http::Method,
    routing::post,
};
use idem_axum::idempotent;

#[derive(Clone)]
struct User {
    id: u64,
    tenant: String,
}

const PREFIX: &str = "orders";

fn both(user: &User) -> String {
    format!("{}/{}", user.tenant, user.id)
}

#[idempotent(scope = user.id)]
async fn field(Extension(user): Extension<User>) -> String {
    user.tenant
}

#[idempotent(scope = (user.tenant, user.id, PREFIX, method.as_str()))]
async fn tuple(method: Method, Extension(user): Extension<User>, mut body: String) -> String {
    body.push_str(&user.tenant);
    body.push_str(method.as_str());
    body
}

#[idempotent(scope = both(&user))]
async fn call(Extension(user): Extension<User>, Json(_): Json<u8>) -> String {
    user.tenant
}

#[idempotent(scope = format!("{user}:{}", order.len()))]
async fn text(Path(user): Path<String>, order: String) -> String {
    user + &order
}

#[idempotent(scope = if let Some(Extension(tenant)) = &tenant { *tenant } else { 0 })]
async fn branches(tenant: Option<Extension<u64>>) -> String {
    format!("{}", tenant.is_some())
}

#[idempotent(scope = tenants.iter().map(|tenant| { return tenant + 1; }).sum::<u64>())]
async fn closure(Json(tenants): Json<Vec<u64>>) -> Json<Vec<u64>> {
    Json(tenants)
}

/// The keyword wins over the argument, and the argument is still there.
#[idempotent(scope = global)]
async fn global(Extension(global): Extension<User>) -> String {
    global.tenant
}

#[idempotent(scope = tenant.id)]
async fn generic<S: Clone + Send + Sync + 'static>(State(_): State<S>, Extension(tenant): Extension<User>, _: Method) {}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/field", post(field))
        .route("/tuple", post(tuple))
        .route("/call", post(call))
        .route("/text/{user}", post(text))
        .route("/branches", post(branches))
        .route("/closure", post(closure))
        .route("/global", post(global))
        .route("/generic", post(generic::<(), _, _>));
}

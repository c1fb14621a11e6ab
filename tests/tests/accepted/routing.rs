//! Everywhere axum takes a handler.

use axum::{
    Extension, Router,
    extract::State,
    handler::Handler,
    routing::{any, get, post, post_service},
};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};

#[derive(Clone)]
struct App;

#[idempotent]
async fn create(State(_): State<App>, Extension(tenant): Extension<u64>, body: String) -> String {
    format!("{tenant} {body}")
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/orders", get(create).post(create))
        .route("/any", any(create))
        .route("/layered", post(create.layer(Extension(1_u64))))
        .route("/with_state", post_service(create.with_state(App)))
        .nest("/nested", Router::new().route("/orders", post(create)))
        .fallback(create)
        .layer(Extension(2_u64))
        .layer(IdempotencyLayer::new(Idempotency::in_memory()))
        .with_state(App);
}

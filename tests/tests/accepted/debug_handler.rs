//! `#[axum::debug_handler]` below checks the function as it was written.

#![forbid(dead_code)]

use axum::{Router, extract::State, http::StatusCode, routing::post};
use idem_axum::idempotent;

#[derive(Clone)]
struct App;

#[idempotent]
#[axum::debug_handler]
async fn create(State(_): State<App>, body: String) -> Result<String, StatusCode> {
    if body.is_empty() {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(body)
}

#[idempotent(scope = body.len())]
#[cfg_attr(debug_assertions, axum::debug_handler(state = App))]
async fn in_debug_builds(body: String) -> String {
    body
}

struct Orders;

impl Orders {
    #[idempotent]
    #[axum::debug_handler]
    async fn create(State(_): State<App>, body: String) -> String {
        body
    }
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/", post(create))
        .route("/debug", post(in_debug_builds))
        .route("/orders", post(Orders::create))
        .with_state(App);
}

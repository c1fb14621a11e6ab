//! Arguments whose types hold references that live for ever, as a leaked application state does.
use axum::extract::{Extension, State};
use axum::{Router, routing::post};
use idem_axum::idempotent;

struct App;

#[idempotent]
async fn state(State(_app): State<&'static App>, body: String) -> String {
    body
}

#[idempotent]
async fn extension(Extension(name): Extension<&'static str>) -> &'static str {
    name
}

#[idempotent(scope = name)]
async fn scoped(Extension(name): Extension<&'static str>, State(_app): State<&'static App>) {
    let _ = name;
}

#[test]
fn compiles() {
    let _: Router<&'static App> =
        Router::new().route("/state", post(state)).route("/extension", post(extension)).route("/scoped", post(scoped));
}

//! The return type is gone from the wrapper, and the imports it needed are still used.

#![deny(unused_imports)]

use axum::response::IntoResponse;
use idem_axum::idempotent;

#[idempotent]
async fn hidden() -> impl IntoResponse + use<> {
    "hidden"
}

#[idempotent]
async fn nested() -> Result<impl IntoResponse, impl IntoResponse + Send> {
    if false {
        return Err("error");
    }
    Ok("nested")
}

trait Of<T> {}
impl<T, X> Of<T> for X {}

struct Api<T>(T);

impl<T: Clone + Send + Sync + 'static> Api<T> {
    #[idempotent]
    #[allow(dead_code)]
    async fn generic() -> impl IntoResponse + Of<T> {
        "generic"
    }
}

//! The handler owns its arguments, used or not, and they go in the order in which they would without the attribute.

use axum::{
    Router,
    body::Body,
    extract::FromRequestParts,
    http::{Request, request::Parts},
    routing::post,
};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use std::{convert::Infallible, sync::Mutex};
use tower::ServiceExt;

static LOG: Mutex<Vec<usize>> = Mutex::new(Vec::new());

const BODY: usize = 100;

fn log(what: usize) {
    LOG.lock().unwrap().push(what);
}

struct Guard<const N: usize>;

impl<S: Sync, const N: usize> FromRequestParts<S> for Guard<N> {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self)
    }
}

impl<const N: usize> Drop for Guard<N> {
    fn drop(&mut self) {
        log(N);
    }
}

async fn plain(
    _a: Guard<0>,
    _: Guard<1>,
    (_b, _c): (Guard<2>, Guard<3>),
    (_d, _): (Guard<4>, Guard<5>),
    ref _e: Guard<6>,
) {
    tokio::task::yield_now().await;
    log(BODY);
}

#[idempotent]
async fn wrapped(
    _a: Guard<0>,
    _: Guard<1>,
    (_b, _c): (Guard<2>, Guard<3>),
    (_d, _): (Guard<4>, Guard<5>),
    ref _e: Guard<6>,
) {
    tokio::task::yield_now().await;
    log(BODY);
}

async fn plain_few(
    _a: Guard<0>,
    ref _r: Guard<7>,
    _: Guard<1>,
    (ref _d, _): (Guard<4>, Guard<5>),
    (_b, _c): (Guard<2>, Guard<3>),
    ref mut _e: Guard<6>,
) {
    tokio::task::yield_now().await;
    log(BODY);
}

#[idempotent(scope = std::mem::size_of_val(&_a))]
async fn wrapped_with_scope(
    _a: Guard<0>,
    ref _r: Guard<7>,
    _: Guard<1>,
    (ref _d, _): (Guard<4>, Guard<5>),
    (_b, _c): (Guard<2>, Guard<3>),
    ref mut _e: Guard<6>,
) {
    tokio::task::yield_now().await;
    log(BODY);
}

#[tokio::test]
async fn runs() {
    let app = Router::new()
        .route("/plain", post(plain))
        .route("/wrapped", post(wrapped))
        .route("/plain_few", post(plain_few))
        .route("/wrapped_with_scope", post(wrapped_with_scope))
        .layer(IdempotencyLayer::new(Idempotency::in_memory()));
    let logged = async |path: &str| {
        let request = Request::post(path).header("idempotency-key", path).body(Body::empty()).unwrap();
        assert!(app.clone().oneshot(request).await.unwrap().status().is_success());
        std::mem::take(&mut *LOG.lock().unwrap())
    };
    assert_eq!(logged("/wrapped").await, logged("/plain").await);
    assert_eq!(logged("/wrapped_with_scope").await, logged("/plain_few").await);
}

//! A handler whose future is large responds wherever it does without the attribute, and costs one copy of it.
#![allow(clippy::unwrap_used, reason = "a failed check panics")]

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use tower::ServiceExt;

const LARGE: usize = 256 * 1024;

/// Holds a large buffer over an `await`, so that it is part of the future.
async fn fill(last: u8) -> String {
    let mut buffer = [0_u8; LARGE];
    tokio::task::yield_now().await;
    buffer[LARGE - 1] = last;
    tokio::task::yield_now().await;
    std::hint::black_box(&buffer)[LARGE - 1].to_string()
}

#[idempotent]
async fn annotated() -> String {
    fill(7).await
}

async fn bare() -> String {
    fill(7).await
}

fn app() -> Router {
    Router::new()
        .route("/annotated", post(annotated))
        .route("/bare", post(bare))
        .layer(IdempotencyLayer::new(Idempotency::in_memory()))
}

async fn send(app: Router, path: &str, key: Option<&str>) -> String {
    let mut request = Request::post(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// On a worker thread, whose stack has tokio's default size, and in a debug build.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_large_future_fits_the_stack_of_a_worker_thread() {
    let app = app();
    for (path, key) in [("/bare", None), ("/annotated", None), ("/annotated", Some("a")), ("/annotated", Some("a"))] {
        let response = tokio::spawn(send(app.clone(), path, key)).await.unwrap();
        assert_eq!(response, "7", "{path} {key:?}");
    }
}

#[test]
fn an_execution_takes_one_copy_of_the_future_and_a_few_kilobytes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let app = app();
    let peak = |path: &str, key: Option<&str>| {
        let measured = allocation_counter::measure(|| {
            runtime.block_on(send(app.clone(), path, key));
        });
        usize::try_from(measured.bytes_max).unwrap()
    };
    // What is allocated once and kept.
    peak("/bare", None);
    peak("/annotated", Some("warm-up"));
    let bare = peak("/bare", None);
    assert!(bare >= LARGE, "the future is on the heap: {bare}");
    for key in [None, Some("a")] {
        let annotated = peak("/annotated", key);
        assert!(
            annotated <= LARGE + 8 * 1024,
            "{annotated} bytes with the key {key:?}, and {bare} without the attribute"
        );
    }
}

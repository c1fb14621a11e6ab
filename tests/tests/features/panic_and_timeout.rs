//! How a handler that panics or takes too long is reported, and what of refusals is recorded.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failed check panics")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idem_axum::{Idempotency, Policy, Refusal, Statuses, idempotent};
use idem_tests::support::{app, post as send, text};
use tower::ServiceExt;

type Runs = Arc<AtomicUsize>;

fn errors(refusal: &Refusal) -> Response {
    (refusal.status(), format!("errors: {}", refusal.code())).into_response()
}

#[idempotent]
async fn panics(State(runs): State<Runs>) {
    runs.fetch_add(1, Ordering::SeqCst);
    panic!("a secret");
}

#[idempotent(errors = errors)]
async fn panics_with_errors(State(runs): State<Runs>) {
    runs.fetch_add(1, Ordering::SeqCst);
    panic!("a secret");
}

const NO_SERVER_ERRORS: Policy = Policy::DEFAULT.record(Statuses::SUCCESS).timeout(Duration::from_millis(20));

#[idempotent(policy = NO_SERVER_ERRORS)]
async fn panics_unrecorded(State(runs): State<Runs>) {
    runs.fetch_add(1, Ordering::SeqCst);
    panic!("a secret");
}

const QUICK: Policy = Policy::DEFAULT.timeout(Duration::from_millis(20)).errors(errors);

#[idempotent(policy = QUICK)]
async fn hangs(State(runs): State<Runs>) {
    runs.fetch_add(1, Ordering::SeqCst);
    std::future::pending().await
}

#[idempotent(policy = NO_SERVER_ERRORS)]
async fn hangs_unrecorded(State(runs): State<Runs>) {
    runs.fetch_add(1, Ordering::SeqCst);
    std::future::pending().await
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("while it is dropped");
    }
}

#[idempotent(policy = QUICK)]
async fn hangs_and_panics_when_dropped() {
    let _guard = PanicsOnDrop;
    std::future::pending().await
}

fn panicking_errors(_: &Refusal) -> Response {
    panic!("in errors")
}

#[idempotent(errors = panicking_errors)]
async fn panics_twice() {
    panic!("a secret");
}

fn routes(runs: &Runs) -> Router {
    Router::new()
        .route("/panics", post(panics))
        .route("/panics-with-errors", post(panics_with_errors))
        .route("/panics-unrecorded", post(panics_unrecorded))
        .route("/panics-twice", post(panics_twice))
        .route("/hangs", post(hangs))
        .route("/hangs-unrecorded", post(hangs_unrecorded))
        .route("/hangs-and-panics", post(hangs_and_panics_when_dropped))
        .with_state(runs.clone())
}

#[tokio::test]
async fn a_panic_is_a_refusal_that_is_replayed() {
    for (path, body) in [
        ("/panics", "\"code\":\"idempotency_handler_panicked\""),
        ("/panics-with-errors", "errors: idempotency_handler_panicked"),
    ] {
        let (idempotency, runs) = (Idempotency::in_memory(), Runs::default());
        let app = app(&idempotency, routes(&runs));
        let first = send(&app, path, "a", "").await;
        assert_eq!(first.status(), 500);
        assert!(!first.headers().contains_key("retry-after"));
        let refusal = first.extensions().get::<Refusal>();
        assert!(matches!(refusal, Some(Refusal::HandlerPanicked { .. })), "{refusal:?}");
        let second = send(&app, path, "a", "").await;
        assert_eq!(
            (second.status(), &second.headers()["idempotent-replayed"]),
            (first.status(), &"true".parse().unwrap())
        );
        assert_eq!(second.headers()["content-type"], first.headers()["content-type"]);
        let first = text(first).await;
        assert!(first.contains(body) && !first.contains("secret"), "{first}");
        assert_eq!(text(second).await, first);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_timeout_is_a_refusal_that_is_replayed() {
    let (idempotency, runs) = (Idempotency::in_memory(), Runs::default());
    let app = app(&idempotency, routes(&runs));
    let first = send(&app, "/hangs", "a", "").await;
    assert_eq!(first.status(), 504);
    assert!(!first.headers().contains_key("retry-after"));
    assert_eq!(text(first).await, "errors: idempotency_handler_timed_out");
    let second = send(&app, "/hangs", "a", "").await;
    assert_eq!(second.headers()["idempotent-replayed"], "true");
    assert_eq!(
        (second.status(), text(second).await.as_str()),
        (StatusCode::GATEWAY_TIMEOUT, "errors: idempotency_handler_timed_out")
    );
    assert_eq!(runs.load(Ordering::SeqCst), 1);

    let first = send(&app, "/hangs-and-panics", "b", "").await;
    assert_eq!(first.status(), 504);
    let second = send(&app, "/hangs-and-panics", "b", "").await;
    assert_eq!(second.headers()["idempotent-replayed"], "true");
}

#[tokio::test]
async fn record_decides_whether_a_panic_or_a_timeout_is_recorded() {
    for (path, status) in [("/panics-unrecorded", 500), ("/hangs-unrecorded", 504)] {
        let (idempotency, runs) = (Idempotency::in_memory(), Runs::default());
        let app = app(&idempotency, routes(&runs));
        for _ in 0..2 {
            let response = send(&app, path, "a", "").await;
            assert_eq!(response.status(), status);
            assert!(!response.headers().contains_key("idempotent-replayed"));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn a_request_without_a_key_has_the_same_timeout() {
    let (idempotency, runs) = (Idempotency::in_memory(), Runs::default());
    let app = app(&idempotency, routes(&runs));
    for path in ["/hangs", "/hangs-and-panics"] {
        let response = app.clone().oneshot(Request::post(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), text(response).await.as_str()),
            (504, "errors: idempotency_handler_timed_out"),
            "{path}"
        );
    }
}

#[idempotent(shadow, timeout = "1s")]
async fn slow() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_no_handler_is_cut_off() {
    let app = app(&Idempotency::in_memory(), Router::new().route("/slow", post(slow)));
    let without_key = app.clone().oneshot(Request::post("/slow").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(without_key.status(), 200);
    assert_eq!(send(&app, "/slow", "a", "").await.status(), 200);
}

#[tokio::test]
async fn errors_that_panics_still_leaves_a_response() {
    let (idempotency, runs) = (Idempotency::in_memory(), Runs::default());
    let app = app(&idempotency, routes(&runs));
    for _ in 0..2 {
        let response = send(&app, "/panics-twice", "a", "").await;
        assert_eq!(response.status(), 500);
        assert!(text(response).await.contains("idempotency_handler_panicked"), "the default body");
    }
    let response = send(&app, "/panics-twice", "two words", "").await;
    assert_eq!(response.status(), 400);
    assert!(text(response).await.contains("idempotency_key_invalid"));
    assert_eq!(idempotency.executions(), 0);
}

#[idempotent(required)]
async fn inner(State(runs): State<Runs>) -> &'static str {
    runs.fetch_add(1, Ordering::SeqCst);
    "done"
}

#[derive(Clone)]
struct Nested(Router);

/// Calls `inner`, at first without the key that it needs.
#[idempotent]
async fn outer(State((Nested(router), runs)): State<(Nested, Runs)>) -> Response {
    let mut request = Request::post("/inner");
    if runs.fetch_add(1, Ordering::SeqCst) > 0 {
        request = request.header("idempotency-key", "inner");
    }
    router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_refusal_of_another_call_is_not_recorded() {
    let (idempotency, inner_runs) = (Idempotency::in_memory(), Runs::default());
    let nested = app(&idempotency, Router::new().route("/inner", post(inner)).with_state(inner_runs.clone()));
    let routes = Router::new().route("/outer", post(outer)).with_state((Nested(nested), Runs::default()));
    let app = app(&idempotency, routes);
    let first = send(&app, "/outer", "a", "").await;
    assert_eq!(first.status(), 400);
    assert!(matches!(first.extensions().get(), Some(Refusal::KeyMissing { .. })));
    let second = send(&app, "/outer", "a", "").await;
    assert_eq!((second.status().as_u16(), text(second).await.as_str()), (200, "done"));
    let third = send(&app, "/outer", "a", "").await;
    assert_eq!(third.headers()["idempotent-replayed"], "true");
    assert_eq!(inner_runs.load(Ordering::SeqCst), 1);
}

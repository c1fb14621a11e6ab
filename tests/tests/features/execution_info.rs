//! Where an execution came from, as an operator learns it: the endpoint by its template, and the trace of the request.
#![allow(clippy::unwrap_used, reason = "a failed check panics")]

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::Request;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use idem_runtime::{Key, KeyReport, Scope};
use tower::ServiceExt;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[idempotent]
async fn pay(Path(order): Path<u32>) -> String {
    order.to_string()
}

#[idempotent]
async fn anywhere() {}

/// The state of the key of a request to `path` with these `traceparent` lines.
async fn inspected(path: &str, traces: &[&str]) -> KeyReport {
    let idempotency = Idempotency::in_memory();
    let routes = Router::new().nest("/shop", Router::new().route("/orders/{id}", post(pay))).fallback(anywhere);
    let app = routes.layer(IdempotencyLayer::new(idempotency.clone()));
    let mut request = Request::post(path).header("Idempotency-Key", "a");
    for trace in traces {
        request = request.header("traceparent", *trace);
    }
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    idempotency.inspect(&Scope::GLOBAL, &Key::parse(b"a").unwrap()).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_endpoint_is_its_method_and_template_and_never_its_path() {
    assert_eq!(inspected("/shop/orders/7?token=secret", &[]).await.endpoint(), Some("POST /shop/orders/{id}"));
    assert_eq!(inspected("/secret", &[]).await.endpoint(), Some("POST *"), "a fallback has no template");
}

#[tokio::test]
async fn a_trace_is_that_of_one_good_header() {
    let trace = |found: KeyReport| found.execution_info().unwrap().trace().map(|trace| trace.to_string());
    assert_eq!(trace(inspected("/shop/orders/7", &[TRACE]).await).as_deref(), Some(TRACE));
    for traces in [&[][..], &[TRACE, TRACE], &["nonsense"]] {
        assert_eq!(trace(inspected("/shop/orders/7", traces).await), None, "{traces:?}");
    }
}

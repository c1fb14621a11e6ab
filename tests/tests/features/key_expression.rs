//! `key = expr`: the handler's arguments say the key, and no header does.
#![allow(clippy::unwrap_used, reason = "a failed check panics")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query};
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use http_body_util::BodyExt;
use idem_axum::{Idempotency, IdempotencyKey, IdempotencyLayer, Key, Policies, Policy, Refusal, Scope, idempotent};
use idem_tests::Spans;
use serde::Deserialize;
use tower::ServiceExt;

#[derive(Deserialize)]
struct Event {
    id: String,
    #[serde(default)]
    attempt: u32,
}

/// Returns the id, and for the attempt 1 an error, which the policy does not record.
#[idempotent(key = event.id, policy = Policy::WEBHOOK)]
async fn receive(Json(event): Json<Event>) -> (StatusCode, String) {
    let status = if event.attempt == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let child = IdempotencyKey::from_text(&event.id).map(|key| key.derive("charge").as_str().to_owned());
    (status, child.unwrap_or_default())
}

#[derive(Deserialize)]
struct Order {
    id: Option<String>,
}

#[idempotent(key = order.id)]
async fn optional(Query(order): Query<Order>, body: String) -> String {
    body
}

#[idempotent(key = order.id.as_deref(), required)]
async fn required(Query(order): Query<Order>, body: String) -> String {
    body
}

#[idempotent(key = id, scope = (tenant, path), fingerprint = body)]
async fn scoped(Path((tenant, id)): Path<(String, u64)>, body: String) -> String {
    format!("{tenant}/{id}: {body}")
}

#[idempotent(key = order.id, required, shadow)]
async fn shadow(Query(order): Query<Order>) {}

#[idempotent(key = order.id, timeout = "1ms")]
async fn slow(Query(order): Query<Order>) {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

/// It reads the body itself, without a limit.
#[idempotent(key = order.id)]
async fn upload(Query(order): Query<Order>, body: Body) -> String {
    uploaded(body).await
}

#[idempotent(key = order.id, required)]
async fn required_upload(Query(order): Query<Order>, body: Body) -> String {
    uploaded(body).await
}

#[idempotent(key = order.id, shadow)]
async fn shadow_upload(Query(order): Query<Order>, body: Body) -> String {
    uploaded(body).await
}

async fn uploaded(body: Body) -> String {
    body.collect().await.map_or_else(|error| error.to_string(), |body| body.to_bytes().len().to_string())
}

/// The type is hidden from the attribute.
type Hidden = IdempotencyKey;

#[idempotent(key = order.id)]
async fn with_extractor(_: Hidden, Query(order): Query<Order>) {}

#[idempotent(key = order.id)]
async fn with_optional_extractor(_: Option<Hidden>, Query(order): Query<Order>) {}

#[idempotent(key = order.id, shadow)]
async fn shadow_with_extractor(_: Option<Hidden>, Query(order): Query<Order>) {}

fn app(idempotency: &Idempotency) -> Router {
    Router::new()
        .route("/events", post(receive))
        .route("/other-events", post(receive))
        .route("/optional", post(optional))
        .route("/required", post(required))
        .route("/scoped/{tenant}/{id}", post(scoped))
        .route("/shadow", post(shadow))
        .route("/slow", post(slow))
        .route("/upload", post(upload))
        .route("/required-upload", post(required_upload))
        .route("/shadow-upload", post(shadow_upload))
        .route("/with-extractor", post(with_extractor))
        .route("/with-optional-extractor", post(with_optional_extractor))
        .route("/shadow-with-extractor", post(shadow_with_extractor))
        .layer(IdempotencyLayer::new(idempotency.clone()))
}

async fn send(app: &Router, path: &str, body: impl Into<Body>) -> Response {
    let request = Request::post(path).header("content-type", "application/json");
    app.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
}

/// Returns `ran`, `replay` or the code of a refusal.
fn got(response: &Response) -> &'static str {
    match response.extensions().get::<Refusal>() {
        Some(refusal) => refusal.code(),
        None if response.headers().contains_key("idempotent-replayed") => "replay",
        None => "ran",
    }
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_webhook_is_processed_once_for_each_event() {
    let app = app(&Idempotency::in_memory());
    let first = send(&app, "/events", r#"{"id":"evt_1"}"#).await;
    assert_eq!(got(&first), "ran");
    let first = text(first).await;
    // Under this policy nothing counts but the key.
    let again = send(&app, "/events", r#"{"id":"evt_1","attempt":2}"#).await;
    assert_eq!(got(&again), "replay");
    assert_eq!(text(again).await, first);
    let other = send(&app, "/events", r#"{"id":"evt_2"}"#).await;
    assert_eq!(got(&other), "ran");
    assert_ne!(text(other).await, first);
    assert_eq!(got(&send(&app, "/other-events", r#"{"id":"evt_1"}"#).await), "ran");
}

#[tokio::test]
async fn a_failed_delivery_runs_again() {
    let app = app(&Idempotency::in_memory());
    let failed = send(&app, "/events", r#"{"id":"evt_1","attempt":1}"#).await;
    assert_eq!((failed.status().as_u16(), got(&failed)), (500, "ran"));
    assert_eq!(got(&send(&app, "/events", r#"{"id":"evt_1","attempt":2}"#).await), "ran");
    assert_eq!(got(&send(&app, "/events", r#"{"id":"evt_1","attempt":1}"#).await), "replay");
}

#[tokio::test]
async fn every_text_is_a_key() {
    let idempotency = Idempotency::in_memory();
    let app = app(&idempotency);
    let long = "ä, \"; ".repeat(300);
    let body = |id: &str| serde_json::json!({ "id": id }).to_string();
    for id in [long.as_str(), &long[..long.len() - 1], " ", "\n", "None"] {
        assert_eq!(got(&send(&app, "/events", body(id)).await), "ran", "{id:?}");
        assert_eq!(got(&send(&app, "/events", body(id)).await), "replay", "{id:?}");
        let scope = Scope::GLOBAL.with_path("POST", "/events");
        let found = idempotency.inspect(&scope, &Key::from_text(id).unwrap()).await.unwrap();
        assert!(found.is_some(), "{id:?}");
    }
}

#[tokio::test]
async fn no_key_runs_unprotected_or_is_refused() {
    let app = app(&Idempotency::in_memory());
    for path in ["/optional", "/optional?id="] {
        for _ in 0..2 {
            assert_eq!(got(&send(&app, path, "a").await), "ran", "{path}");
        }
    }
    for path in ["/required", "/required?id="] {
        let refused = send(&app, path, "a").await;
        assert_eq!((refused.status().as_u16(), got(&refused)), (400, "idempotency_key_missing"), "{path}");
        assert!(text(refused).await.contains("takes its key from the content of the request"));
    }
    for path in ["/optional?id=1", "/required?id=2"] {
        assert_eq!(got(&send(&app, path, "a").await), "ran", "{path}");
        assert_eq!(got(&send(&app, path, "a").await), "replay", "{path}");
        assert_eq!(got(&send(&app, path, "b").await), "idempotency_key_mismatch", "{path}");
    }
    for path in ["/shadow", "/shadow?id=1"] {
        assert_eq!(got(&send(&app, path, "").await), "ran", "{path}");
    }
}

#[tokio::test]
async fn a_handler_without_a_key_gets_a_body_that_no_fingerprint_covers() {
    const LARGE: usize = 3 << 20;
    let (spans, _guard) = Spans::capture();
    let app = app(&Idempotency::in_memory()).layer(DefaultBodyLimit::max(LARGE - 1));
    for (is_large, uploaded, refused) in [(true, "3145728", 413), (false, "it broke off", 400)] {
        let body = || match is_large {
            true => Body::from(vec![b'x'; LARGE]),
            false => Body::from_stream(stream::iter([Ok("abc"), Err("it broke off")])),
        };
        for path in ["/upload", "/shadow-upload", "/shadow-upload?id=1"] {
            let response = send(&app, path, body()).await;
            assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, uploaded), "{path}");
        }
        for path in ["/upload?id=1", "/required-upload?id=1"] {
            assert_eq!(send(&app, path, body()).await.status(), refused, "{path}");
        }
        assert_eq!(got(&send(&app, "/required-upload", body()).await), "idempotency_key_missing");
    }
    let large = ["unprotected", "unprotected", "shadow unread", "rejected", "rejected", "refused"];
    let broken = ["unprotected", "unprotected", "shadow reject", "rejected", "rejected", "refused"];
    let outcomes = spans.named("idempotency").into_iter().map(|span| {
        let fields = ["outcome", "would"].into_iter().filter_map(|field| span.get(field));
        fields.collect::<Vec<_>>().join(" ")
    });
    assert_eq!(outcomes.collect::<Vec<_>>(), [large, broken].concat());
}

#[tokio::test]
async fn the_header_does_not_count() {
    let app = app(&Idempotency::in_memory());
    let send = async |path: &str, header: &str| {
        let request = Request::post(path).header("idempotency-key", header).body(Body::empty()).unwrap();
        got(&app.clone().oneshot(request).await.unwrap())
    };
    assert_eq!(send("/optional?id=1", "a").await, "ran");
    assert_eq!(send("/optional?id=1", "b").await, "replay");
    assert_eq!(send("/optional?id=2", "a, malformed").await, "ran");
    assert_eq!(send("/required", "a").await, "idempotency_key_missing");
}

#[tokio::test]
async fn the_scope_counts_beside_the_key() {
    let app = app(&Idempotency::in_memory());
    for path in ["/scoped/acme/1", "/scoped/acme/2", "/scoped/globex/1"] {
        assert_eq!(got(&send(&app, path, "a").await), "ran", "{path}");
        let replay = send(&app, path, "a").await;
        assert_eq!(got(&replay), "replay", "{path}");
        assert!(path.ends_with(text(replay).await.strip_suffix(": a").unwrap()), "{path}");
        assert_eq!(got(&send(&app, path, "b").await), "idempotency_key_mismatch", "{path}");
    }
}

#[tokio::test]
async fn an_argument_that_is_rejected_leaves_no_trace() {
    let app = app(&Idempotency::in_memory());
    assert_eq!(send(&app, "/events", "{").await.status(), 400);
    assert_eq!(got(&send(&app, "/events", r#"{"id":"evt_1"}"#).await), "ran");
}

#[tokio::test]
async fn an_extractor_of_the_key_before_the_key_is_known_is_a_mistake_of_the_service() {
    let app = app(&Idempotency::in_memory());
    for path in ["/with-extractor?id=1", "/with-optional-extractor?id=1"] {
        let response = send(&app, path, "").await;
        assert_eq!((response.status().as_u16(), got(&response)), (500, "ran"), "{path}");
        assert_eq!(text(response).await, "", "{path}");
    }
    // Shadow mode enforces nothing.
    assert_eq!(send(&app, "/shadow-with-extractor?id=1", "").await.status().as_u16(), 200);
}

#[tokio::test]
async fn a_timeout_holds_with_a_key_and_without() {
    let app = app(&Idempotency::in_memory());
    for path in ["/slow", "/slow?id=1"] {
        assert_eq!(got(&send(&app, path, "").await), "idempotency_handler_timed_out", "{path}");
    }
}

#[tokio::test]
async fn concurrent_deliveries_run_once() {
    static RUNS: AtomicU32 = AtomicU32::new(0);

    #[idempotent(key = event.id, policy = Policy::WEBHOOK, in_flight = reject(202))]
    async fn count(Json(event): Json<Event>) -> String {
        RUNS.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        event.id
    }

    let app = Router::new().route("/", post(count)).layer(IdempotencyLayer::new(Idempotency::in_memory()));
    let deliveries = (0..8).map(|_| send(&app, "/", r#"{"id":"evt_1"}"#));
    for response in futures_util::future::join_all(deliveries).await {
        assert!(response.status().is_success(), "{}", response.status());
    }
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_description_names_no_header() {
    let policies = Policies::<()>::at("/policies").endpoint(Method::POST, "/required", required).endpoint(
        Method::POST,
        "/events",
        receive,
    );
    let document: serde_json::Value = serde_json::from_str(&policies.document()).unwrap();
    let endpoints = document["endpoints"].as_array().unwrap();
    let keys: Vec<_> = endpoints.iter().map(|endpoint| endpoint["key"].clone()).collect();
    assert!(keys.contains(&serde_json::json!({ "required": true })), "{keys:?}");
    assert!(keys.contains(&serde_json::json!({ "required": false })), "{keys:?}");
    assert!(!document.to_string().contains("idempotency_key_invalid"));
}

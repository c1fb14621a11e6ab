//! Handlers and functions over one store: their keys never meet, whatever they are called. And a value that another version of the
//! program recorded is read, or refused, and never computed again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::routing::post;
use http_body_util::BodyExt;
use idem_axum::{Idempotency, IdempotencyLayer, RefusalReason, idempotent};
use idem_proofs::cluster::redelivery::open;
use idem_testkit::postgres::Postgres;
use idem_testkit::redis::Redis;
use tower::ServiceExt;

#[derive(Clone)]
struct App {
    idempotency: Idempotency,
    runs: Arc<AtomicUsize>,
}

impl App {
    fn run(&self) -> usize {
        self.runs.fetch_add(1, Ordering::SeqCst) + 1
    }
}

#[idempotent(engine = app.idempotency, scope = "ship", key = id)]
async fn ship(app: App, id: String) -> Result<String, RefusalReason> {
    Ok(format!("function, run {}", app.run()))
}

#[idempotent(engine = app.idempotency, scope = "", key = id)]
async fn ship_without_scope(app: App, id: String) -> Result<String, RefusalReason> {
    Ok(format!("function without a scope, run {}", app.run()))
}

#[idempotent(key = id, scope = queue, fingerprint = none)]
async fn ship_by_path(State(app): State<App>, Path((queue, id)): Path<(String, String)>) -> String {
    format!("handler, run {}", app.run())
}

#[idempotent(required, scope = global, fingerprint = none)]
async fn ship_by_header(State(app): State<App>) -> String {
    format!("handler by header, run {}", app.run())
}

/// The function in the next version of the program.
#[idempotent(engine = app.idempotency, scope = "ship", key = id)]
async fn ship_numbered(app: App, id: String) -> Result<u64, RefusalReason> {
    app.run();
    Ok(id.len() as u64)
}

async fn check(idempotency: Idempotency) {
    let app = App { idempotency: idempotency.clone(), runs: Arc::default() };
    let routes = Router::new()
        .route("/{queue}/{id}", post(ship_by_path))
        .route("/", post(ship_by_header))
        .layer(IdempotencyLayer::new(idempotency.clone()))
        .with_state(app.clone());
    let ask = async |path: &str| {
        let request = Request::post(path).header("idempotency-key", "17").body(Body::empty()).unwrap();
        let response = routes.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    // The same scope and key, by each way, and then again.
    for _ in 0..2 {
        assert_eq!(ship(app.clone(), "17".to_owned()).await.unwrap(), "function, run 1");
        assert_eq!(ask("/ship/17").await, "handler, run 2");
        assert_eq!(ask("/").await, "handler by header, run 3");
        let without_scope = ship_without_scope(app.clone(), "17".to_owned()).await;
        assert_eq!(without_scope.unwrap(), "function without a scope, run 4");
    }

    for _ in 0..2 {
        let changed = ship_numbered(app.clone(), "17".to_owned()).await.unwrap_err();
        let text = changed.to_string();
        assert!(!changed.is_retryable() && text.contains("under key ") && text.contains("`u64`"), "{text}");
    }
    assert_eq!(app.runs.load(Ordering::SeqCst), 4);

    // What is forgotten of a function is not forgotten of a handler.
    assert!(idempotency.once("ship", "17").forget().await.unwrap());
    assert_eq!(ask("/ship/17").await, "handler, run 2");
    assert_eq!(ship(app.clone(), "17".to_owned()).await.unwrap(), "function, run 5");
}

#[tokio::test]
async fn in_memory() {
    check(Idempotency::in_memory()).await;
}

#[tokio::test]
async fn over_redis() {
    let redis = Redis::start().await;
    check(open(&redis.url(), "").await).await;
}

#[tokio::test]
async fn over_postgres() {
    let postgres = Postgres::quick().await;
    check(open(&postgres.url(), "").await).await;
}

#[tokio::test]
async fn over_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    check(open(&format!("sqlite://{}", folder.path().join("idempotency.db").display()), "").await).await;
}

//! `path` in a scope: the same key on another path is another key.
#![allow(clippy::unwrap_used, reason = "a failed check panics")]

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::Request;
use axum::response::Response;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, Key, Policy, Refusal, Scope, idempotent};
use tower::ServiceExt;

#[idempotent(scope = path)]
async fn of_path() -> &'static str {
    "done"
}

#[idempotent(scope = (path, global))]
async fn of_path_for_all() -> &'static str {
    "done"
}

#[idempotent(scope = (header("X-Tenant"), path))]
async fn of_tenant() -> &'static str {
    "done"
}

#[idempotent(scope = (id % 2, path))]
async fn of_argument(Path(id): Path<u64>) -> String {
    id.to_string()
}

fn app(idempotency: &Idempotency) -> Router {
    Router::new()
        .route("/path/{id}", post(of_path))
        .route("/all/{id}", post(of_path_for_all))
        .route("/tenant/{id}", post(of_tenant))
        .route("/argument/{id}", post(of_argument))
        .layer(IdempotencyLayer::new(idempotency.clone()))
}

/// Sends a request with the key `a`. Returns `ran`, `replay` or the code of a refusal.
async fn send(app: &Router, path: &str, header: (&str, &str)) -> &'static str {
    let request = Request::post(path).header("idempotency-key", "a").header(header.0, header.1);
    let response: Response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    match response.extensions().get::<Refusal>() {
        Some(refusal) => refusal.code(),
        None if response.headers().contains_key("idempotent-replayed") => "replay",
        None => "ran",
    }
}

const ALICE: (&str, &str) = ("authorization", "alice");
const BOB: (&str, &str) = ("authorization", "bob");

#[tokio::test]
async fn a_path_alone_leaves_the_caller_bound() {
    let app = app(&Idempotency::in_memory());
    assert_eq!(send(&app, "/path/1", ALICE).await, "ran");
    assert_eq!(send(&app, "/path/2", ALICE).await, "ran");
    assert_eq!(send(&app, "/path/1", ALICE).await, "replay");
    assert_eq!(send(&app, "/path/1", BOB).await, "idempotency_key_mismatch");
}

#[tokio::test]
async fn a_path_beside_global_binds_no_caller() {
    let app = app(&Idempotency::in_memory());
    assert_eq!(send(&app, "/all/1", ALICE).await, "ran");
    assert_eq!(send(&app, "/all/2", BOB).await, "ran");
    assert_eq!(send(&app, "/all/1", BOB).await, "replay");
}

#[tokio::test]
async fn a_path_beside_a_header_separates_both() {
    let app = app(&Idempotency::in_memory());
    let (acme, globex) = (("x-tenant", "acme"), ("x-tenant", "globex"));
    assert_eq!(send(&app, "/tenant/1", acme).await, "ran");
    assert_eq!(send(&app, "/tenant/1", globex).await, "ran");
    assert_eq!(send(&app, "/tenant/2", acme).await, "ran");
    assert_eq!(send(&app, "/tenant/1", acme).await, "replay");
}

#[tokio::test]
async fn a_path_beside_an_argument_separates_both() {
    let idempotency = Idempotency::in_memory();
    let app = app(&idempotency);
    for path in ["/argument/1", "/argument/2", "/argument/3"] {
        assert_eq!(send(&app, path, ALICE).await, "ran", "{path}");
    }
    assert_eq!(send(&app, "/argument/3", BOB).await, "replay");
    let scope = Scope::arguments().with(b"1").with_path("POST", "/argument/3");
    let key = Key::parse(b"a").unwrap();
    assert!(idempotency.inspect(&scope, &key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_policy_with_a_path_is_overridden_by_the_attribute() {
    const PER_PATH: Policy = Policy::DEFAULT.scope(Scope::GlobalAndPath);

    #[idempotent(policy = PER_PATH, scope = global, fingerprint = none)]
    async fn shared() -> &'static str {
        "done"
    }

    let routes = Router::new().route("/{id}", post(shared));
    let app = routes.layer(IdempotencyLayer::new(Idempotency::in_memory()));
    assert_eq!(send(&app, "/1", ALICE).await, "ran");
    assert_eq!(send(&app, "/2", BOB).await, "replay");
}

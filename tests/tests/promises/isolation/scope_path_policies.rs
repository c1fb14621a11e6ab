//! `Scope::Path` and its siblings in a policy: the same key on another path is another key, and operators find it.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, Key, Policy, Scope, idempotent};
use idem_tests::got::ResponseKind::{Ran, Replay};
use idem_tests::got::{MISMATCH, got, send};
use tower::ServiceExt;

const PATH: Policy = Policy::DEFAULT.no_fingerprint().scope(Scope::Path);
const GLOBAL: Policy = Policy::DEFAULT.no_fingerprint().scope(Scope::GlobalAndPath);
const TENANT: Policy = Policy::DEFAULT.no_fingerprint().scope(Scope::HeaderAndPath("X-Tenant"));

#[idempotent(policy = PATH)]
async fn cancel() {}
#[idempotent(policy = GLOBAL)]
async fn cancel_for_anyone() {}
#[idempotent(policy = TENANT)]
async fn cancel_for_tenant() {}

/// Nested, so that the router cuts a prefix off the path.
fn routes(idempotency: &Idempotency) -> Router {
    let nested = Router::new()
        .route("/{id}/cancel", post(cancel).put(cancel))
        .route("/{id}/anyone", post(cancel_for_anyone))
        .route("/{id}/tenant", post(cancel_for_tenant));
    Router::new()
        .nest("/sessions", nested.clone())
        .nest("/carts", nested)
        .layer(IdempotencyLayer::new(idempotency.clone()))
}

const ALICE: (&str, &str) = ("authorization", "Bearer alice");
const BOB: (&str, &str) = ("authorization", "Bearer bob");

#[tokio::test]
async fn the_same_key_on_another_path_is_independent() {
    let app = routes(&Idempotency::in_memory());
    for path in ["/sessions/A/cancel", "/sessions/B/cancel", "/carts/A/cancel", "/sessions/%41/cancel"] {
        assert_eq!(got(&send(&app, path, &[ALICE], "").await), Ran, "{path}");
        assert_eq!(got(&send(&app, path, &[ALICE], "").await), Replay, "{path}");
        assert_eq!(got(&send(&app, path, &[BOB], "").await), MISMATCH, "the caller is bound: {path}");
    }
    assert_eq!(got(&send(&app, "/sessions/A/cancel?q=1", &[ALICE], "").await), Replay, "the query is no path");
    let put = Request::put("/sessions/A/cancel").header("idempotency-key", "a").header(ALICE.0, ALICE.1);
    let put = app.clone().oneshot(put.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(got(&put), Ran, "another method");
}

#[tokio::test]
async fn with_global_no_caller_is_bound() {
    let app = routes(&Idempotency::in_memory());
    assert_eq!(got(&send(&app, "/sessions/A/anyone", &[ALICE], "").await), Ran);
    assert_eq!(got(&send(&app, "/sessions/A/anyone", &[BOB], "").await), Replay);
    assert_eq!(got(&send(&app, "/sessions/B/anyone", &[BOB], "").await), Ran);
}

#[tokio::test]
async fn operators_find_a_key_by_the_table_of_scopes() {
    let idempotency = Idempotency::in_memory();
    let app = routes(&idempotency);
    let key = Key::parse(b"a").unwrap();
    let tenant = ("x-tenant", "acme");
    for (path, headers, scope) in [
        ("/sessions/A/cancel", &[ALICE][..], Scope::GLOBAL.with_path("POST", "/sessions/A/cancel")),
        ("/sessions/A/anyone", &[ALICE], Scope::GLOBAL.with_path("POST", "/sessions/A/anyone")),
        ("/sessions/A/tenant", &[ALICE], Scope::GLOBAL.with_path("POST", "/sessions/A/tenant")),
        (
            "/sessions/A/tenant",
            &[tenant],
            Scope::header("X-Tenant").with(b"acme").with_path("POST", "/sessions/A/tenant"),
        ),
    ] {
        assert!(idempotency.inspect(&scope, &key).await.unwrap().is_none(), "{path}");
        assert_eq!(got(&send(&app, path, headers, "").await), Ran, "{path}");
        assert!(idempotency.inspect(&scope, &key).await.unwrap().is_some(), "{path}");
    }
}

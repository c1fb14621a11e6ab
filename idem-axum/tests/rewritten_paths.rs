//! A layer between two routers that rewrites the path: the endpoint sees another path than the one that was sent.
#![allow(clippy::unwrap_used, reason = "a test")]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, RawQuery, Request};
use axum::http::Uri;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, Policy, idempotent};
use tower::util::MapRequestLayer;
use tower::{Layer, ServiceExt};

#[idempotent]
async fn order(Path(tenant): Path<String>) -> String {
    tenant
}

#[idempotent]
async fn search(RawQuery(query): RawQuery) -> String {
    query.unwrap_or_default()
}

#[idempotent(fingerprint = body)]
async fn of_body(Path(tenant): Path<String>) -> String {
    tenant
}

#[idempotent(key = event.1, policy = Policy::WEBHOOK)]
async fn hook(Path(event): Path<(String, String)>) -> String {
    event.0
}

#[idempotent(fingerprint = none, scope = global)]
async fn anything(request: Request) -> String {
    request.uri().path().to_owned()
}

/// A tenant is a host, and becomes a part of the path.
fn app() -> Router {
    let tenants = Router::new()
        .route("/tenants/{tenant}/orders", post(order))
        .route("/tenants/{tenant}/of-body", post(of_body))
        .route("/search", post(search))
        .route("/tenants/{tenant}/hooks/{event}", post(hook))
        .fallback(anything)
        .layer(IdempotencyLayer::new(Idempotency::in_memory()));
    let rewrite = MapRequestLayer::new(|mut request: Request| {
        let tenant = request.headers()["x-tenant"].to_str().unwrap();
        let path = match request.uri().path() {
            "/search" => format!("/search?tenant={tenant}"),
            path => format!("/tenants/{tenant}{path}"),
        };
        *request.uri_mut() = Uri::try_from(path).unwrap();
        request
    });
    Router::new().fallback_service(tenants).layer(rewrite)
}

async fn send(app: &Router, path: &str, tenant: &str) -> (u16, bool, String) {
    let key = path.split('?').next().unwrap();
    let request = Request::post(path).header("idempotency-key", key).header("x-tenant", tenant).body(Body::empty());
    let response = app.clone().oneshot(request.unwrap()).await.unwrap();
    let (status, replayed) = (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"));
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, replayed, String::from_utf8(body.into()).unwrap())
}

#[tokio::test]
async fn the_target_that_the_handler_sees_counts_as_well() {
    let app = app();
    for path in ["/orders", "/elsewhere", "/search"] {
        let (status, replayed, first) = send(&app, path, "acme").await;
        assert!(status == 200 && !replayed, "{path}");
        assert_eq!(send(&app, path, "acme").await, (200, true, first), "{path}");
        assert_eq!(send(&app, path, "other").await.0, 422, "{path}");
    }
}

#[tokio::test]
async fn a_path_that_was_rewritten_counts_only_if_the_path_does() {
    let app = app();
    for (tenant, replayed) in [("acme", false), ("acme", true), ("other", true)] {
        assert_eq!(send(&app, "/of-body", tenant).await, (200, replayed, "acme".to_owned()), "{tenant}");
    }
}

#[tokio::test]
async fn a_scope_of_the_path_has_the_path_that_the_handler_sees() {
    let app = app();
    for tenant in ["acme", "other"] {
        for replayed in [false, true] {
            assert_eq!(send(&app, "/hooks/1", tenant).await, (200, replayed, tenant.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_layer_that_removes_the_start_for_one_tenant_rewrites_the_path() {
    let shortened = MapRequestLayer::new(|mut request: Request| {
        let path = match request.headers()["x-tenant"].to_str().unwrap() {
            "acme" => "/1",
            "other" => "/",
            _ => return request,
        };
        *request.uri_mut() = Uri::from_static(path);
        request
    });
    let tenants = Router::new().fallback(anything).layer(IdempotencyLayer::new(Idempotency::in_memory()));
    let tenants = shortened.layer(tenants);
    let app = Router::new()
        .nest_service("/nested/{by}", tenants.clone())
        .nest("/twice", Router::new().nest_service("/nested/", tenants.clone()))
        .fallback_service(tenants);
    for (path, seen) in
        [("/orders/1", "/orders/1"), ("/nested/a/orders/1", "/orders/1"), ("/twice/nested/orders/1", "/orders/1")]
    {
        for replayed in [false, true] {
            assert_eq!(send(&app, path, "none").await, (200, replayed, seen.to_owned()), "{path}");
            for shortened in ["acme", "other"] {
                assert_eq!(send(&app, path, shortened).await.0, 422, "{path} {shortened}");
            }
        }
    }
}

#[idempotent(scope = (global, path))]
async fn of_path(Path(tenant): Path<String>) -> String {
    tenant
}

#[idempotent(fingerprint = header("Host"))]
async fn by_host(uri: Uri) -> String {
    uri.host().unwrap_or_default().to_owned()
}

/// As `app`, with the tenant in the start of the path, which a nested router cuts off.
fn nested(rewrite: fn(&str, &str) -> String) -> Router {
    let tenant = Router::new().route("/orders", post(order)).route("/hooks", post(of_path)).fallback(anything);
    let tenants = Router::new()
        .nest("/tenants/{tenant}", tenant.clone())
        .nest("/t/{tenant}", tenant.clone())
        .nest_service("/s/{tenant}", tenant.clone())
        .nest("/acme", Router::new().fallback(anything))
        .nest("/other", Router::new().fallback(anything))
        .layer(IdempotencyLayer::new(Idempotency::in_memory()));
    let rewrite = MapRequestLayer::new(move |mut request: Request| {
        let path = rewrite(request.headers()["x-tenant"].to_str().unwrap(), request.uri().path());
        *request.uri_mut() = Uri::try_from(path).unwrap();
        request
    });
    Router::new().fallback_service(tenants).layer(rewrite)
}

#[tokio::test]
async fn the_start_that_a_nested_router_cuts_off_counts_if_it_was_rewritten() {
    let added: fn(&str, &str) -> String = |tenant, path| format!("/tenants/{tenant}{path}");
    let replaced: fn(&str, &str) -> String = |tenant, path| path.replace("/by-header", &format!("/t/{tenant}"));
    let service: fn(&str, &str) -> String = |tenant, path| path.replace("/by-header", &format!("/s/{tenant}"));
    let literal: fn(&str, &str) -> String = |tenant, path| path.replace("/api/v1", &format!("/{tenant}"));
    for (rewrite, start, ends) in [
        (added, "", &["/orders", "/elsewhere", "/hooks"][..]),
        (replaced, "/by-header", &["/orders", "/elsewhere", "/hooks"]),
        (service, "/by-header", &["/orders", "/elsewhere", "/hooks"]),
        (literal, "/api/v1", &["/elsewhere", ""]),
    ] {
        let app = nested(rewrite);
        for end in ends {
            let path = format!("{start}{end}");
            let (status, replayed, first) = send(&app, &path, "acme").await;
            assert!(status == 200 && !replayed, "{path} {status} {first}");
            assert_eq!(send(&app, &path, "acme").await, (200, true, first), "{path}");
            match *end {
                "/hooks" => assert_eq!(send(&app, &path, "other").await, (200, false, "other".to_owned()), "{path}"),
                _ => assert_eq!(send(&app, &path, "other").await.0, 422, "{path}"),
            }
        }
    }
}

#[tokio::test]
async fn a_host_that_a_layer_writes_into_the_target_counts_as_well() {
    let tenants = Router::new().route("/", post(by_host)).layer(IdempotencyLayer::new(Idempotency::in_memory()));
    let rewrite = MapRequestLayer::new(|mut request: Request| {
        let tenant = request.headers()["x-tenant"].to_str().unwrap();
        *request.uri_mut() = Uri::try_from(format!("http://{tenant}.example/")).unwrap();
        request
    });
    let app = Router::new().fallback_service(tenants).layer(rewrite);
    for path in ["/", "http://proxy.example/"] {
        for replayed in [false, true] {
            assert_eq!(send(&app, path, "acme").await, (200, replayed, "acme.example".to_owned()));
        }
        assert_eq!(send(&app, path, "other").await.0, 422, "{path}");
    }
}

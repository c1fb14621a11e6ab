//! Without a layer nothing runs; with one it does not matter where it is mounted.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, MemoryStore, idempotent};
use idem_tests::{Ask, Logs, Probe, Setup, post as send};

#[idempotent(required)]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    probe.run().await;
    (StatusCode::CREATED, body)
}

fn routes() -> Router<Probe> {
    Router::new().route("/", post(order))
}

fn ask() -> Ask {
    send("/").key("k").body("x")
}

#[tokio::test]
async fn without_the_layer_nothing_runs_and_the_developer_is_told() {
    let (app, probe) = Setup::bare(routes());
    let (logs, _guard) = Logs::capture();
    for ask in [ask(), send("/"), send("/").key("a b")] {
        ask.to(&app).await.assert_refused(500, "idempotency_layer_missing");
    }
    assert_eq!(probe.runs(), 0);
    let logged = logs.text();
    assert!(logged.contains("ERROR") && logged.contains("IdempotencyLayer::new"), "{logged}");
}

#[tokio::test]
async fn the_layer_counts_wherever_it_is_mounted() {
    let layer = || IdempotencyLayer::new(Idempotency::in_memory());
    for routes in [
        routes().layer(layer()),
        routes().route_layer(layer()),
        Router::new().route("/", post(order).layer(layer())),
        Router::new().merge(routes().layer(layer())),
        Router::new().nest("/v1", Router::new()).merge(routes()).layer(layer()),
    ] {
        let (app, probe) = Setup::bare(routes);
        let first = ask().to(&app).await;
        first.assert_ran(201);
        ask().to(&app).await.assert_replay_of(&first);
        assert_eq!(probe.runs(), 1);
    }
}

#[tokio::test]
async fn of_two_layers_the_innermost_counts() {
    let (inner, outer) = (MemoryStore::new(), MemoryStore::new());
    let routes = routes()
        .layer(IdempotencyLayer::new(Idempotency::new(inner.clone())))
        .layer(IdempotencyLayer::new(Idempotency::new(outer.clone())));
    let (app, _) = Setup::bare(routes);
    ask().to(&app).await.assert_ran(201);
    assert_eq!((inner.usage().entries, outer.usage().entries), (1, 0));
}

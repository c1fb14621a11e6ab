//! The endpoint, which is method and route template, always takes part: a key used on one endpoint is refused on another, whatever
//! the fingerprint declares.

use axum::Router;
use axum::extract::State;
use axum::routing::{any, post, put};
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send};

/// Declares as little as one can.
#[idempotent(fingerprint = body)]
async fn only_body(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

#[idempotent]
async fn whole(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

/// `first` runs, and `other` with the same key gets 422, in both orders.
async fn assert_apart(routes: impl Fn() -> Router<Probe>, one: &Ask, two: &Ask) {
    for (first, other) in [(one, two), (two, one)] {
        let setup = Setup::of(routes());
        first.to(&setup.app).await.assert_ran(200);
        let refused = other.to(&setup.app).await;
        assert_eq!(refused.status, 422, "{first:?} {other:?} {refused:?}");
        assert!(first.to(&setup.app).await.is_replay(), "{first:?}");
        assert_eq!(setup.probe.runs(), 1);
    }
}

fn ask(method: &'static str, target: &str) -> Ask {
    Ask::new(method, target).key("k")
}

#[tokio::test]
async fn two_routes_of_one_handler_are_two_endpoints() {
    let routes = || Router::new().route("/a", post(only_body)).route("/b", post(only_body));
    assert_apart(routes, &ask("POST", "/a"), &ask("POST", "/b")).await;
}

#[tokio::test]
async fn two_methods_of_one_route_are_two_endpoints() {
    let routes = || Router::new().route("/a", post(only_body).put(only_body).delete(only_body));
    assert_apart(routes, &ask("POST", "/a"), &ask("PUT", "/a")).await;
    let routes = || Router::new().route("/a", any(only_body));
    assert_apart(routes, &ask("POST", "/a"), &ask("DELETE", "/a")).await;
}

#[tokio::test]
async fn one_template_is_one_endpoint_so_undeclared_paths_and_queries_are_equal() {
    let setup = Setup::of(Router::new().route("/orders/{id}", post(only_body)));
    let first = send("/orders/1?a=1").key("k").to(&setup.app).await;
    send("/orders/2?b=2").key("k").to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn the_same_route_nested_twice_is_two_endpoints() {
    let inner = || Router::new().route("/orders", post(only_body)).route("/orders/{id}", put(only_body));
    let routes = || Router::new().nest("/v1", inner()).nest("/v2", inner());
    assert_apart(routes, &ask("POST", "/v1/orders"), &ask("POST", "/v2/orders")).await;
    assert_apart(routes, &ask("PUT", "/v1/orders/1"), &ask("PUT", "/v2/orders/1")).await;
    let setup = Setup::of(routes());
    let first = ask("PUT", "/v1/orders/1").to(&setup.app).await;
    ask("PUT", "/v1/orders/2").to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn a_nested_route_and_one_at_the_top_are_two_endpoints() {
    let routes = || Router::new().nest("/v1", Router::new().route("/a", post(only_body))).route("/a", post(only_body));
    assert_apart(routes, &ask("POST", "/v1/a"), &ask("POST", "/a")).await;
}

#[tokio::test]
async fn a_nested_service_has_endpoints_too() {
    let routes = || {
        let inner = || Router::new().route("/a", post(only_body)).route("/b", post(only_body)).with_state(Probe::new());
        Router::new().nest_service("/v1", inner()).nest_service("/v2", inner())
    };
    for (one, two) in [("/v1/a", "/v1/b"), ("/v1/a", "/v2/a")] {
        let setup = Setup::of(routes());
        send(one).key("k").to(&setup.app).await.assert_ran(200);
        send(two).key("k").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    }
}

#[tokio::test]
async fn two_paths_of_a_fallback_are_two_endpoints() {
    let routes = || Router::new().fallback(only_body);
    assert_apart(routes, &ask("POST", "/a"), &ask("POST", "/b")).await;
    assert_apart(routes, &ask("POST", "/a"), &ask("PUT", "/a")).await;
}

#[tokio::test]
async fn a_fallback_and_a_route_are_two_endpoints() {
    let routes = || Router::new().route("/a", put(only_body)).fallback(only_body);
    assert_apart(routes, &ask("PUT", "/a"), &ask("PUT", "/b")).await;
}

#[tokio::test]
async fn a_fallback_within_a_nest_has_endpoints_too() {
    let routes = || Router::new().nest("/v1", Router::new().route("/x", post(only_body)).fallback(only_body));
    assert_apart(routes, &ask("POST", "/v1/a"), &ask("POST", "/v1/b")).await;
    assert_apart(routes, &ask("POST", "/v1/a"), &ask("POST", "/v1/x")).await;
}

#[tokio::test]
async fn a_method_fallback_is_another_endpoint_than_the_method() {
    let routes = || Router::new().route("/a", post(only_body).fallback(only_body));
    assert_apart(routes, &ask("POST", "/a"), &ask("PATCH", "/a")).await;
    assert_apart(routes, &ask("DELETE", "/a"), &ask("PATCH", "/a")).await;
}

#[tokio::test]
async fn the_path_in_the_fingerprint_is_the_whole_path_within_a_nest() {
    let routes = || Router::new().nest("/{tenant}", Router::new().route("/orders", post(whole)));
    assert_apart(routes, &ask("POST", "/acme/orders"), &ask("POST", "/globex/orders")).await;
}

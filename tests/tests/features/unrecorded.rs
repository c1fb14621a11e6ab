//! `Unrecorded`: the response is sent, the claim released, and a retry runs again.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyLayer, Unrecorded, idempotent};
use idem_tests::{Connection, Probe, Setup, feed, once, post as send, responding};
use tower::ServiceExt;

struct SoldOut;

impl IntoResponse for SoldOut {
    fn into_response(self) -> Response {
        (Unrecorded, (StatusCode::CONFLICT, "sold out for now")).into_response()
    }
}

/// Sold out twice, and then not.
#[idempotent]
async fn order(State(probe): State<Probe>) -> Result<(StatusCode, String), SoldOut> {
    match probe.run().await {
        1 | 2 => Err(SoldOut),
        run => Ok((StatusCode::CREATED, format!("run {run}"))),
    }
}

#[tokio::test]
async fn a_retry_runs_again_until_there_is_a_response_to_record() {
    let setup = Setup::of(Router::new().route("/", post(order)));
    let server = setup.serve().await;
    let ask = send("/").key("k");
    for _ in 0..2 {
        let reply = ask.at(&server).await;
        reply.assert_ran(409);
        assert_eq!(reply.text(), "sold out for now");
        setup.assert_nothing_stored();
    }
    let response = ask.at(&server).await;
    assert_eq!(response.text(), "run 3");
    ask.at(&server).await.assert_replay_of(&response);
    assert_eq!(setup.probe.runs(), 3);
}

#[tokio::test]
async fn after_a_release_the_key_is_free_for_another_request() {
    let setup = Setup::of(Router::new().route("/", post(order)));
    send("/").key("k").to(&setup.app).await.assert_ran(409);
    send("/").key("k").body("corrected").to(&setup.app).await.assert_ran(409);
    send("/").key("k").body("again").to(&setup.app).await.assert_ran(201);
}

/// Calls another endpoint, under its own key, and passes the response on.
#[idempotent]
async fn outer(State(probe): State<Probe>) -> Response {
    inner(probe).await
}

async fn inner(probe: Probe) -> Response {
    let layer = IdempotencyLayer::new(Idempotency::in_memory());
    let app = Router::new().route("/", post(order)).layer(layer).with_state(probe);
    let request = Request::post("/").header("idempotency-key", "inner").body(Body::empty()).unwrap();
    app.oneshot(request).await.into_response()
}

#[tokio::test]
async fn an_endpoint_that_passes_it_on_does_not_record_it_either() {
    let setup = Setup::of(Router::new().route("/", post(outer)));
    let ask = send("/").key("k");
    for status in [409, 409, 201] {
        setup.assert_nothing_stored();
        ask.to(&setup.app).await.assert_ran(status);
    }
    assert!(ask.to(&setup.app).await.is_replay());
}

#[tokio::test]
async fn the_claim_is_released_though_the_client_is_gone() {
    let setup = Setup::of(Router::new().route("/", post(order)));
    let server = setup.serve().await;
    setup.probe.close();
    let mut client = Connection::open(&server).await;
    client.send(send("/").key("k").bytes()).await;
    setup.probe.started(1).await;
    client.reset();
    setup.probe.left(1).await;
    setup.probe.open();
    setup.settled().await;
    setup.assert_nothing_stored();
}

#[tokio::test]
async fn without_a_key_it_changes_nothing() {
    let setup = Setup::of(Router::new().route("/", post(order)));
    send("/").to(&setup.app).await.assert_ran(409);
}

#[tokio::test]
async fn a_stream_that_is_not_recorded_is_sent_as_it_is() {
    let (feed, body) = feed();
    let setup = responding!([], once((Unrecorded, Body::new(body))));
    let response = send("/").key("k").response(&setup.app).await;
    setup.settled().await;
    setup.assert_nothing_stored();
    feed.send("live");
    drop(feed);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, "live");
}

//! The client leaves while the handler runs.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, H2, Probe, Server, Setup, post as send};

#[idempotent]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    let run = probe.run().await;
    (StatusCode::CREATED, format!("order {run}: {body}"))
}

async fn bare_order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    let run = probe.run().await;
    (StatusCode::CREATED, format!("order {run}: {body}"))
}

fn ask() -> Ask {
    send("/orders").key("k").body("a book")
}

/// A client that leaves while the handler waits at the gate.
async fn leave(way: &str, server: &Server, probe: &Probe) {
    if way.starts_with("h2") {
        let client = H2::open(server).await;
        let (_response, mut stream) = client.start(&ask()).await;
        probe.started(1).await;
        match way {
            "h2 cancel" => H2::cancel(&mut stream),
            _ => client.hang_up(),
        }
        return probe.left(1).await;
    }
    let mut client = Connection::open(server).await;
    client.send(ask().bytes()).await;
    probe.started(1).await;
    match way {
        "close" => client.hang_up(),
        "reset" => client.reset(),
        "half-close" => {
            client.half_close().await;
            probe.left(1).await;
            assert_eq!(client.rest().await, b"", "hyper takes a half-close for a hang-up");
        }
        other => panic!("{other}"),
    }
    probe.left(1).await;
}

/// What the attribute is for: the handler continues, and the retry gets its response.
async fn a_client_that_leaves(way: &str) {
    let setup = Setup::of(Router::new().route("/orders", post(order)));
    let server = setup.serve().await;
    setup.probe.close();
    leave(way, &server, &setup.probe).await;
    ask().at(&server).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    setup.settled().await;
    let replay = ask().at(&server).await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!((replay.status, replay.text()), (201, "order 1: a book"));
    assert_eq!((setup.probe.runs(), setup.probe.finished()), (1, 1));
}

/// What happens without it: the body is cut short, and the retry runs another one.
async fn a_client_that_leaves_a_bare_handler(way: &str) {
    let (app, probe) = Setup::bare(Router::new().route("/orders", post(bare_order)));
    let server = Server::start(app).await;
    probe.close();
    leave(way, &server, &probe).await;
    probe.cut(1).await;
    probe.open();
    assert_eq!(ask().at(&server).await.text(), "order 2: a book");
    assert_eq!((probe.runs(), probe.finished()), (2, 1));
}

#[tokio::test]
async fn a_client_that_closes_gets_a_replay_on_retry() {
    a_client_that_leaves("close").await;
}

#[tokio::test]
async fn a_client_that_resets_gets_a_replay_on_retry() {
    a_client_that_leaves("reset").await;
}

#[tokio::test]
async fn a_client_that_half_closes_gets_a_replay_on_retry() {
    a_client_that_leaves("half-close").await;
}

#[tokio::test]
async fn an_http2_client_that_cancels_gets_a_replay_on_retry() {
    a_client_that_leaves("h2 cancel").await;
}

#[tokio::test]
async fn an_http2_client_that_closes_gets_a_replay_on_retry() {
    a_client_that_leaves("h2 close").await;
}

#[tokio::test]
async fn control_without_the_attribute_the_handler_is_cut_short_and_runs_again() {
    for way in ["close", "reset", "half-close", "h2 cancel", "h2 close"] {
        a_client_that_leaves_a_bare_handler(way).await;
    }
}

#[tokio::test]
async fn a_client_that_closes_behind_a_pipelined_byte_gets_a_replay_on_retry() {
    let setup = Setup::of(Router::new().route("/orders", post(order)));
    let server = setup.serve().await;
    setup.probe.close();
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    client.send("P").await;
    setup.probe.started(1).await;
    client.hang_up();
    setup.probe.open();
    setup.probe.over(1).await;
    setup.settled().await;
    assert!(ask().at(&server).await.is_replay());
    assert_eq!((setup.probe.runs(), setup.probe.finished()), (1, 1));
}

#[tokio::test]
async fn over_http2_a_cancelled_stream_leaves_the_others_alone() {
    let setup = Setup::of(Router::new().route("/orders", post(order)));
    let server = setup.serve().await;
    setup.probe.close();
    let client = H2::open(&server).await;
    let (_response, mut stream) = client.start(&ask()).await;
    setup.probe.started(1).await;
    H2::cancel(&mut stream);
    setup.probe.left(1).await;
    client.ask(&ask()).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    setup.settled().await;
    let replay = client.ask(&ask()).await;
    assert!(replay.is_replay() && replay.text() == "order 1: a book", "{replay:?}");
}

#[tokio::test]
async fn a_request_dropped_in_process_gets_a_replay_on_retry() {
    let setup = Setup::of(Router::new().route("/orders", post(order)));
    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    request.abort();
    setup.probe.left(1).await;
    setup.probe.open();
    setup.settled().await;
    assert!(ask().to(&setup.app).await.is_replay());
    assert_eq!((setup.probe.runs(), setup.probe.finished()), (1, 1));
}

/// A timeout around the endpoint is a client that leaves.
#[tokio::test(start_paused = true)]
async fn a_timeout_cuts_the_wait_and_not_the_handler() {
    async fn timeout(request: Request, next: Next) -> Result<Response, StatusCode> {
        let response = tokio::time::timeout(Duration::from_secs(1), next.run(request)).await;
        response.map_err(|_| StatusCode::GATEWAY_TIMEOUT)
    }
    let setup = Setup::of(Router::new().route("/orders", post(order)).layer(from_fn(timeout)));
    setup.probe.close();
    assert_eq!(ask().to(&setup.app).await.status, 504);
    ask().to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    setup.settled().await;
    let replay = ask().to(&setup.app).await;
    assert_eq!((replay.status, replay.is_replay(), setup.probe.runs()), (201, true, 1));
}

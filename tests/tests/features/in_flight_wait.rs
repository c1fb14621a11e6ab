//! `in_flight = wait(..)`.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, poll};
use idem_axum::{Unrecorded, idempotent};
use idem_tests::{Ask, Connection, Probe, Reply, Setup, post as send};
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[idempotent(in_flight = wait("5s"))]
async fn order(State(probe): State<Probe>) -> (StatusCode, String) {
    let run = probe.run().await;
    (StatusCode::CREATED, format!("run {run}"))
}

/// Fails in its first run.
#[idempotent(in_flight = wait("5s"), record = success)]
async fn fails_once(State(probe): State<Probe>) -> StatusCode {
    if probe.run().await == 1 { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED }
}

#[idempotent(in_flight = wait("5s"))]
async fn unrecorded_once(State(probe): State<Probe>) -> Response {
    if probe.run().await == 1 { (Unrecorded, "sold out").into_response() } else { "sold".into_response() }
}

fn setup() -> Setup {
    let routes = Router::new()
        .route("/", post(order))
        .route("/fails-once", post(fails_once))
        .route("/unrecorded-once", post(unrecorded_once));
    Setup::of(routes)
}

/// An owner at the gate.
async fn owner(setup: &Setup, ask: &Ask) -> JoinHandle<Reply> {
    setup.probe.close();
    let (app, ask) = (setup.app.clone(), ask.clone());
    let owner = tokio::spawn(async move { ask.to(&app).await });
    setup.probe.started(1).await;
    owner
}

/// A request that has been polled, and waits.
async fn waiter<'a>(setup: &'a Setup, ask: &'a Ask) -> BoxFuture<'a, Reply> {
    let mut waiter = ask.to(&setup.app).boxed();
    assert!(poll!(&mut waiter).is_pending());
    waiter
}

#[tokio::test(start_paused = true)]
async fn twenty_waiters_share_one_run_and_one_response() {
    let (setup, ask) = (setup(), send("/").key("k"));
    let owner = owner(&setup, &ask).await;
    let waiters = join_all((0..20).map(|_| waiter(&setup, &ask))).await;
    let began = Instant::now();
    setup.probe.open();
    let first = owner.await.unwrap();
    for reply in join_all(waiters).await {
        reply.assert_replay_of(&first);
    }
    // The clock only moves when nothing but timers is left: a waiter that polls would move it.
    assert_eq!(began.elapsed(), Duration::ZERO, "woken, not polled");
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_connections_wait_for_one_response() {
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut connections = Vec::new();
    for _ in 0..21 {
        let mut connection = Connection::open(&server).await;
        connection.send(send("/").key("k").bytes()).await;
        connections.push(connection);
    }
    setup.probe.entered(21).await;
    setup.probe.open();
    let replies = join_all(connections.iter_mut().map(Connection::reply)).await;
    assert!(replies.iter().all(|reply| reply.status == 201 && reply.text() == "run 1"), "{replies:?}");
    assert_eq!(replies.iter().filter(|reply| reply.is_replay()).count(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_gives_up_gets_409_and_changes_nothing() {
    let (setup, ask) = (setup(), send("/").key("k"));
    let owner = owner(&setup, &ask).await;
    let began = Instant::now();
    let refused = ask.to(&setup.app).await;
    refused.assert_refused(409, "idempotency_key_locked");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(began.elapsed().as_secs(), 5);
    setup.probe.open();
    let first = owner.await.unwrap();
    first.assert_ran(201);
    ask.to(&setup.app).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiters_that_hang_up_change_nothing() {
    let (setup, ask) = (setup(), send("/").key("k"));
    let owner = owner(&setup, &ask).await;
    let mut waiters = join_all((0..9).map(|_| waiter(&setup, &ask))).await;
    // The first in the queue, one in the middle, and the last.
    let (last, middle, first) = (waiters.pop(), waiters.remove(4), waiters.remove(0));
    drop((last, middle, first));
    setup.probe.open();
    // Two more, who are gone when it is their turn to be woken.
    waiters.truncate(4);
    let response = owner.await.unwrap();
    for reply in join_all(waiters).await {
        reply.assert_replay_of(&response);
    }
    assert_eq!((setup.probe.runs(), setup.store.usage().in_flight), (1, 0));
}

#[tokio::test]
async fn a_waiting_client_that_resets_changes_nothing() {
    let setup = setup();
    let server = setup.serve().await;
    let ask = send("/").key("k");
    let owner = owner(&setup, &ask).await;
    let mut waiter = Connection::open(&server).await;
    waiter.send(ask.bytes()).await;
    setup.probe.entered(2).await;
    waiter.reset();
    setup.probe.left(1).await;
    setup.probe.open();
    let first = owner.await.unwrap();
    ask.at(&server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_with_another_fingerprint_is_refused_at_once() {
    let (setup, ask) = (setup(), send("/").key("k"));
    let _owner = owner(&setup, &ask).await;
    let began = Instant::now();
    ask.clone().body("other").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn when_the_owner_releases_one_waiter_runs_the_handler() {
    for (path, status, then) in [("/fails-once", 502, 201), ("/unrecorded-once", 200, 200)] {
        let (setup, ask) = (setup(), send(path).key("k"));
        let owner = owner(&setup, &ask).await;
        let waiters = join_all((0..5).map(|_| waiter(&setup, &ask))).await;
        setup.probe.open();
        owner.await.unwrap().assert_ran(status);
        let replies = join_all(waiters).await;
        assert!(replies.iter().all(|reply| reply.status == then), "{path}: {replies:?}");
        assert_eq!(replies.iter().filter(|reply| reply.is_replay()).count(), 4, "{path}");
        assert_eq!(setup.probe.runs(), 2, "{path}");
    }
}

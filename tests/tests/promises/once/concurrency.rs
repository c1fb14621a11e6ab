//! Concurrent requests with one key.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idem_axum::{Idempotency, idempotent};
use idem_tests::{Ask, Connection, H2, Probe, Reply, Server, Setup, post as send, until};

#[idempotent]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    let run = probe.run().await;
    (StatusCode::CREATED, format!("order {run}: {body}"))
}

async fn bare_order(State(probe): State<Probe>, _: String) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

fn setup() -> Setup {
    Setup::of(Router::new().route("/orders", post(order)))
}

fn ask() -> Ask {
    send("/orders").key("k-1").body("a book")
}

/// One ran; each other is a replay of it, or was told to come back.
fn assert_one_ran(replies: &[Reply]) {
    let (ran, others): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201 && !reply.is_replay());
    assert_eq!(ran.len(), 1, "{replies:?}");
    for other in others {
        if other.status == 201 {
            other.assert_replay_of(ran[0]);
        } else {
            assert_locked(other);
        }
    }
}

fn assert_locked(reply: &Reply) {
    reply.assert_refused(409, "idempotency_key_locked");
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_at_once_run_the_handler_once() {
    let setup = setup();
    let asked = (0..100).map(|_| {
        let app = setup.app.clone();
        tokio::spawn(async move { ask().to(&app).await })
    });
    let replies: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_one_ran(&replies);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_at_once_run_the_handler_once() {
    let setup = setup();
    let server = setup.serve().await;
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections.push(Connection::open(&server).await);
    }
    let ask = ask();
    let replies = join_all(connections.iter_mut().map(|connection| ask.over(connection))).await;
    assert_one_ran(&replies);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_http2_streams_at_once_run_the_handler_once() {
    let setup = setup();
    let server = setup.serve().await;
    let (client, ask) = (H2::open(&server).await, ask());
    assert_one_ran(&join_all((0..100).map(|_| client.ask(&ask))).await);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_requests_with_one_key_one_runs_and_the_other_is_refused() {
    let setup = setup();
    let asked = (0..100).map(|number| {
        let (app, ask) = (setup.app.clone(), ask().body(if number % 2 == 0 { "a book" } else { "a pen" }));
        tokio::spawn(async move { ask.to(&app).await })
    });
    let replies: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    let (refused, others): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 422);
    assert_eq!(refused.len(), 50);
    assert_one_ran(&others);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_engines_over_one_store_run_the_handler_once() {
    let setup = setup();
    let routes = || Router::new().route("/orders", post(order));
    let (other, probe) = Setup::mount(&Idempotency::new(setup.store.clone()), routes());
    let asked = (0..100).map(|number| {
        let app = if number % 2 == 0 { setup.app.clone() } else { other.clone() };
        tokio::spawn(async move { ask().to(&app).await })
    });
    let replies: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
    assert_one_ran(&replies);
    assert_eq!(setup.probe.runs() + probe.runs(), 1);
}

#[tokio::test]
async fn while_the_handler_runs_ninety_nine_are_told_to_come_back() {
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut first = Connection::open(&server).await;
    first.send(ask().bytes()).await;
    setup.probe.started(1).await;
    for reply in join_all((0..99).map(async |_| ask().at(&server).await)).await {
        assert_locked(&reply);
    }
    setup.probe.open();
    let response = first.reply().await;
    response.assert_ran(201);
    ask().over(&mut first).await.assert_replay_of(&response);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn another_key_is_not_held_up() {
    let setup = setup();
    setup.probe.close();
    let app = setup.app.clone();
    let first = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    let app = setup.app.clone();
    let other = tokio::spawn(async move { send("/orders").key("k-2").body("a book").to(&app).await });
    setup.probe.started(2).await;
    setup.probe.open();
    first.await.unwrap().assert_ran(201);
    other.await.unwrap().assert_ran(201);
}

#[tokio::test]
async fn a_pipelined_duplicate_gets_the_replay() {
    let setup = setup();
    let server = setup.serve().await;
    let mut connection = Connection::open(&server).await;
    connection.send([ask().bytes(), ask().bytes()].concat()).await;
    let first = connection.reply().await;
    first.assert_ran(201);
    connection.reply().await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn after_twenty_thousand_keys_no_claim_is_left() {
    let setup = setup();
    for key in 0..20_000 {
        send("/orders").key(&format!("key-{key}")).body("x").to(&setup.app).await.assert_ran(201);
    }
    let usage = setup.store.usage();
    assert_eq!((usage.in_flight, usage.completed, usage.entries), (0, 20_000, 20_000));
    setup.clock.advance(std::time::Duration::from_secs(24 * 60 * 60));
    until("the janitor has removed them", async || setup.store.usage().entries == 0).await;
    assert_eq!(setup.store.usage().bytes, 0);
}

#[tokio::test]
async fn control_without_the_attribute_all_run() {
    let (app, probe) = Setup::bare(Router::new().route("/orders", post(bare_order)));
    let server = Server::start(app).await;
    let replies = join_all((0..100).map(async |_| ask().at(&server).await)).await;
    assert!(replies.iter().all(|reply| reply.status == 201));
    assert_eq!(probe.runs(), 100);
}

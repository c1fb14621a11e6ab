//! A graceful shutdown does not wait for bodies whose client is gone; `drain` does.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::poll;
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, Probe, Server, Setup, post as send, within};

#[idempotent]
async fn order(State(probe): State<Probe>) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

fn setup() -> Setup {
    Setup::of(Router::new().route("/", post(order)))
}

fn ask() -> Ask {
    send("/").key("k")
}

#[tokio::test]
async fn drain_waits_for_the_body_whose_client_is_gone_and_its_record_is_there() {
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    setup.probe.started(1).await;
    client.hang_up();
    setup.probe.left(1).await;
    server.shut_down().await;
    assert_eq!((setup.probe.finished(), setup.idempotency.executions()), (0, 1), "the server did not wait");
    let mut drained = Box::pin(setup.idempotency.drain());
    assert!(poll!(&mut drained).is_pending());
    setup.probe.open();
    within("the drain", drained).await;
    assert_eq!((setup.probe.finished(), setup.idempotency.executions()), (1, 0));
    // A server that comes up with the same engine replays.
    let server = Server::start(setup.app.clone()).await;
    let replay = ask().at(&server).await;
    assert!(replay.is_replay() && replay.status == 201, "{replay:?}");
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn a_connected_client_gets_its_answer_while_the_server_shuts_down() {
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    setup.probe.started(1).await;
    let shutdown = tokio::spawn(server.shut_down());
    setup.probe.open();
    client.reply().await.assert_ran(201);
    within("the shutdown", shutdown).await.unwrap();
    within("the drain", setup.idempotency.drain()).await;
}

#[tokio::test]
async fn drain_without_executions_is_at_once_and_the_engine_goes_on() {
    let setup = setup();
    within("the drain", setup.idempotency.drain()).await;
    ask().to(&setup.app).await.assert_ran(201);
    within("the drain", setup.idempotency.drain()).await;
    assert!(ask().to(&setup.app).await.is_replay());
}

#[tokio::test]
async fn a_drain_that_is_given_up_changes_nothing() {
    let setup = setup();
    setup.probe.close();
    let app = setup.app.clone();
    let running = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    assert!(poll!(Box::pin(setup.idempotency.drain())).is_pending());
    setup.probe.open();
    running.await.unwrap().assert_ran(201);
    within("the drain", setup.idempotency.drain()).await;
}

//! A graceful shutdown does not wait for handlers whose client is gone; `drain` does.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::poll;
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, Logs, Probe, Server, Setup, post as send, within};
use tokio::sync::oneshot;

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
async fn drain_waits_for_the_handler_whose_client_is_gone_and_its_record_is_there() {
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
async fn a_connected_client_gets_its_response_while_the_server_shuts_down() {
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

#[tokio::test]
async fn a_second_signal_ends_the_drain_and_says_how_many_executions_are_left() {
    let (logs, _guard) = Logs::capture();
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut running = 0;
    for key in ["a", "b", "c"] {
        let mut client = Connection::open(&server).await;
        client.send(send("/").key(key).bytes()).await;
        running += 1;
        setup.probe.started(running).await;
        client.hang_up();
    }
    setup.probe.left(3).await;
    server.shut_down().await;
    let (signal, signalled) = oneshot::channel::<()>();
    let mut drained = Box::pin(setup.idempotency.drain_until(async { drop(signalled.await) }));
    assert!(poll!(&mut drained).is_pending());
    signal.send(()).unwrap();
    let undrained = within("the drain", drained).await.unwrap_err();
    assert_eq!(undrained.executions(), 3);
    assert!(undrained.to_string().contains("3 executions were running; if the process ends now"), "{undrained}");
    assert!(logs.text().contains("WARN") && logs.text().contains(&undrained.to_string()), "{}", logs.text());
    // The runtime lives on, and so do the bodies: nothing is lost.
    setup.probe.open();
    let never = std::future::pending::<()>();
    within("the second drain", setup.idempotency.drain_until(never)).await.unwrap();
    assert_eq!(setup.probe.finished(), 3);
    for key in ["a", "b", "c"] {
        assert!(send("/").key(key).to(&setup.app).await.is_replay());
    }
}

#[tokio::test]
async fn a_drain_with_nothing_to_wait_for_is_at_once_even_when_it_is_already_over() {
    let setup = setup();
    within("the drain", setup.idempotency.drain_until(std::future::ready(()))).await.unwrap();
    ask().to(&setup.app).await.assert_ran(201);
    within("the drain", setup.idempotency.drain_until(std::future::ready(()))).await.unwrap();
}

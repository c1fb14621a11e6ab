//! A handler that panics ran once: 500 to the first caller and to the replay.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Ask, Connection, Probe, Server, Setup, post as send, responding};

/// The code of the refusal that a client gets when a handler panics.
const PANICKED: &str = "idempotency_handler_panicked";

/// Panics if the request says so.
#[idempotent]
async fn order(State(probe): State<Probe>, headers: HeaderMap) -> StatusCode {
    let run = probe.run().await;
    assert!(!headers.contains_key("x-panic"), "in run {run}");
    StatusCode::CREATED
}

async fn bare_order(State(probe): State<Probe>) -> StatusCode {
    probe.run().await;
    panic!("without protection");
}

fn setup() -> Setup {
    Setup::of(Router::new().route("/", post(order)))
}

fn ask() -> Ask {
    send("/").key("k").header("x-panic", "1")
}

#[tokio::test]
async fn a_panic_is_500_to_the_first_caller_and_to_the_replay() {
    let setup = setup();
    let server = setup.serve().await;
    let mut connection = Connection::open(&server).await;
    let first = ask().over(&mut connection).await;
    first.assert_refused(500, PANICKED);
    assert!(!String::from_utf8_lossy(&first.body).contains("in run"), "what a panic says is not for clients");
    ask().over(&mut connection).await.assert_replay_of(&first);
    assert_eq!((setup.probe.runs(), setup.store.usage().in_flight), (1, 0));
    // Other keys are not affected.
    send("/").key("other").over(&mut connection).await.assert_ran(201);
}

#[tokio::test]
async fn a_panic_after_the_client_left_is_replayed() {
    let setup = setup();
    let server = setup.serve().await;
    setup.probe.close();
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    setup.probe.started(1).await;
    client.reset();
    setup.probe.left(1).await;
    setup.probe.open();
    setup.settled().await;
    let replay = ask().at(&server).await;
    assert_eq!((replay.status, replay.is_replay(), setup.probe.runs()), (500, true, 1));
}

#[tokio::test]
async fn where_500_is_not_recorded_a_panic_releases_the_key() {
    let setup = responding!([record = all - 500], || -> StatusCode { panic!("every time") });
    for run in 1..=3 {
        send("/").key("k").to(&setup.app).await.assert_refused(500, PANICKED);
        assert_eq!(setup.probe.runs(), run);
    }
    setup.assert_nothing_stored();
}

#[tokio::test]
async fn waiters_get_the_500_as_well() {
    let setup = responding!([in_flight = wait("5s")], || -> StatusCode { panic!("once") });
    setup.probe.close();
    let app = setup.app.clone();
    let owner = tokio::spawn(async move { send("/").key("k").to(&app).await });
    setup.probe.started(1).await;
    let ask = send("/").key("k");
    let mut waiter = Box::pin(ask.to(&setup.app));
    assert!(futures_util::poll!(&mut waiter).is_pending());
    setup.probe.open();
    waiter.await.assert_replay_of(&owner.await.unwrap());
    assert_eq!(setup.probe.runs(), 1);
}

/// A response that panics when it is made.
struct Explosive;

impl IntoResponse for Explosive {
    fn into_response(self) -> Response {
        panic!("while the response is made")
    }
}

#[tokio::test]
async fn a_panic_while_the_response_is_made_is_a_panic_of_the_handler() {
    #[idempotent]
    async fn explosive(State(probe): State<Probe>) -> Explosive {
        probe.run().await;
        Explosive
    }
    let setup = Setup::of(Router::new().route("/", post(explosive)));
    let first = send("/").key("k").to(&setup.app).await;
    first.assert_refused(500, PANICKED);
    send("/").key("k").to(&setup.app).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn control_without_the_attribute_a_panic_closes_the_connection_and_runs_again() {
    let (app, probe) = Setup::bare(Router::new().route("/", post(bare_order)));
    let server = Server::start(app).await;
    for _ in 0..2 {
        let mut client = Connection::open(&server).await;
        client.send(send("/").key("k").bytes()).await;
        assert_eq!(client.rest().await, b"");
    }
    assert_eq!(probe.runs(), 2);
}

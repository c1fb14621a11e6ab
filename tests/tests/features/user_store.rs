//! The backend swaps by one line: a store that a user wrote, no more than a map and a mutex (`src/user_store.rs`).

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idem_axum::{Idempotency, ManualClock, MemoryStore, Store, idempotent};
use idem_tests::{Ask, Connection, Faults, Probe, Setup, Shelf, post as send};

#[idempotent(in_flight = wait("5s"), ttl = "1h", record = all - 500)]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    let run = probe.run().await;
    let status = if body == "fails" { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::CREATED };
    (status, format!("run {run}: {body}"))
}

fn ask() -> Ask {
    send("/").key("k").body("a book")
}

/// The same story for every store: this is the line that changes.
async fn story(store: impl Store) {
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(store).clock(clock.clone()).build();
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/", post(order)));
    let server = idem_tests::Server::start(app.clone()).await;
    // A client that leaves, and twenty that wait.
    probe.close();
    let mut client = Connection::open(&server).await;
    client.send(ask().bytes()).await;
    probe.started(1).await;
    client.reset();
    probe.left(1).await;
    let crowd: Vec<_> = (0..20)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { ask().to(&app).await })
        })
        .collect();
    probe.entered(21).await;
    ask().body("other").at(&server).await.assert_refused(422, "idempotency_key_mismatch");
    probe.open();
    for reply in join_all(crowd).await {
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.text(), reply.is_replay()), (201, "run 1: a book", true));
    }
    // Expiry, by the engine's clock.
    clock.advance(Duration::from_secs(60 * 60) - Duration::from_nanos(1));
    assert!(ask().at(&server).await.is_replay());
    ask().body("other").at(&server).await.assert_refused(422, "idempotency_key_mismatch");
    clock.advance(Duration::from_nanos(1));
    assert_eq!(ask().at(&server).await.text(), "run 2: a book");
    // Release.
    let fails = send("/").key("k2").body("fails");
    fails.at(&server).await.assert_ran(500);
    fails.at(&server).await.assert_ran(500);
    assert_eq!(probe.runs(), 4);
}

#[tokio::test]
async fn a_store_of_ones_own_keeps_the_promises() {
    story(Shelf::default()).await;
}

#[tokio::test]
async fn the_store_in_memory_tells_the_same_story() {
    story(MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_of_the_ttl_a_crowd_runs_the_handler_once_in_a_store_of_ones_own() {
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(Shelf::default()).clock(clock.clone()).build();
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/", post(order)));
    for round in 1..=20 {
        let crowd = (0..16).map(|_| {
            let app = app.clone();
            tokio::spawn(async move { ask().to(&app).await })
        });
        join_all(crowd).await;
        assert_eq!(probe.runs(), round);
        clock.advance(Duration::from_secs(60 * 60));
    }
}

#[tokio::test]
async fn where_the_store_is_unavailable_nothing_runs() {
    let idempotency = Idempotency::new(Faults { down: true.into(), ..Faults::default() }.over_a_shelf());
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/", post(order)));
    let refused = ask().to(&app).await;
    refused.assert_refused(503, "idempotency_store_unavailable");
    assert!(refused.header("retry-after").is_some());
    assert!(!refused.text().contains("connection"), "what a store says is not for clients");
    assert_eq!(probe.runs(), 0);
    // Without a key there is nothing to protect, and no store to ask.
    send("/").to(&app).await.assert_ran(201);
}

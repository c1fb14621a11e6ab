//! At a limit new keys are refused before the handler starts, existing ones are still replayed, and nothing live is dropped.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idem_axum::{MemoryStore, idempotent};
use idem_tests::{Ask, Probe, Setup, post as send};

#[idempotent(ttl = "1h")]
async fn order(State(probe): State<Probe>, body: String) -> (StatusCode, String) {
    probe.run().await;
    (StatusCode::CREATED, body)
}

fn routes() -> Router<Probe> {
    Router::new().route("/", post(order))
}

fn setup(store: MemoryStore) -> Setup {
    Setup::with(store, |builder| builder, routes())
}

fn ask(key: usize) -> Ask {
    send("/").key(&format!("key-{key}")).body("body")
}

async fn assert_full(setup: &Setup, key: usize) {
    let runs = setup.probe.runs();
    let refused = ask(key).to(&setup.app).await;
    refused.assert_refused(503, "idempotency_store_full");
    assert!(refused.header("retry-after").is_some_and(|after| after.parse::<u64>().unwrap() > 0));
    assert_eq!(setup.probe.runs(), runs);
}

#[tokio::test]
async fn at_max_entries_new_keys_are_refused_and_existing_ones_replayed() {
    let setup = setup(MemoryStore::builder().max_entries(3).build());
    let mut responses = Vec::new();
    for key in 0..3 {
        responses.push(ask(key).to(&setup.app).await);
    }
    assert_full(&setup, 3).await;
    for (key, response) in responses.iter().enumerate() {
        ask(key).to(&setup.app).await.assert_replay_of(response);
        ask(key).body("other").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    }
    assert_full(&setup, 4).await;
    setup.clock.advance(Duration::from_secs(60 * 60));
    ask(4).to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn expiry_makes_room_for_as_many_as_expired() {
    let setup = setup(MemoryStore::builder().max_entries(100).build());
    for key in 0..50 {
        ask(key).to(&setup.app).await.assert_ran(201);
    }
    setup.clock.advance(Duration::from_secs(30 * 60));
    for key in 50..100 {
        ask(key).to(&setup.app).await.assert_ran(201);
    }
    assert_full(&setup, 100).await;
    setup.clock.advance(Duration::from_secs(30 * 60));
    for key in 100..150 {
        ask(key).to(&setup.app).await.assert_ran(201);
    }
    assert_full(&setup, 150).await;
    for key in 50..100 {
        assert!(ask(key).to(&setup.app).await.is_replay(), "a live record was dropped");
    }
}

#[tokio::test]
async fn running_handlers_count_and_are_not_dropped() {
    let setup = setup(MemoryStore::builder().max_entries(1).build());
    setup.probe.close();
    let app = setup.app.clone();
    let running = tokio::spawn(async move { ask(0).to(&app).await });
    setup.probe.started(1).await;
    setup.clock.advance(Duration::from_secs(1_000_000));
    assert_full(&setup, 1).await;
    ask(0).to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    let first = running.await.unwrap();
    ask(0).to(&setup.app).await.assert_replay_of(&first);
}

#[tokio::test]
async fn what_was_refused_uses_up_no_room() {
    let setup = setup(MemoryStore::builder().max_entries(1).build());
    for key in 0..100 {
        send("/").key("").to(&setup.app).await.assert_refused(400, "idempotency_key_invalid");
        assert_eq!(ask(key).body(vec![0xff]).to(&setup.app).await.status, 400);
    }
    ask(0).to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn at_max_bytes_new_keys_are_refused_and_existing_ones_replayed() {
    let setup = setup(MemoryStore::builder().max_bytes(100_000).build());
    let large = |key| ask(key).body("x".repeat(20_000));
    let mut responses = Vec::new();
    for key in 0..1000 {
        let response = large(key).to(&setup.app).await;
        if response.status != 201 {
            response.assert_refused(503, "idempotency_store_full");
            break;
        }
        responses.push(response);
    }
    assert!((4..1000).contains(&responses.len()), "{}", responses.len());
    assert_eq!(setup.probe.runs(), responses.len());
    assert!(setup.store.usage().bytes <= 100_000);
    for (key, response) in responses.iter().enumerate() {
        let retry = large(key).to(&setup.app).await;
        // A response for whose bytes there was no room has left a tombstone: never a second run.
        if retry.status == 201 {
            retry.assert_replay_of(response)
        } else {
            retry.assert_refused(409, "idempotency_not_replayable")
        }
    }
    assert_eq!(setup.probe.runs(), responses.len());
    setup.clock.advance(Duration::from_secs(60 * 60));
    large(1000).to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn a_response_without_room_reaches_the_first_caller_whole() {
    let setup = setup(MemoryStore::builder().max_bytes(10_000).build());
    let ask = ask(0).body("x".repeat(20_000));
    let first = ask.to(&setup.app).await;
    first.assert_ran(201);
    assert_eq!(first.body.len(), 20_000);
    ask.to(&setup.app).await.assert_refused(409, "idempotency_not_replayable");
    assert_eq!(setup.probe.runs(), 1);
}

#[tokio::test]
async fn over_max_executions_new_keys_are_refused_and_usable_afterwards() {
    let setup = Setup::with(MemoryStore::new(), |builder| builder.max_executions(2), routes());
    let recorded = ask(9).to(&setup.app).await;
    setup.probe.close();
    let running: Vec<_> = (0..2)
        .map(|key| {
            let app = setup.app.clone();
            tokio::spawn(async move { ask(key).to(&app).await })
        })
        .collect();
    setup.probe.started(3).await;
    let refused = ask(2).to(&setup.app).await;
    assert_eq!((refused.status, setup.probe.runs()), (503, 3), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    ask(0).to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    ask(9).to(&setup.app).await.assert_replay_of(&recorded);
    setup.probe.open();
    join_all(running).await.into_iter().for_each(|reply| reply.unwrap().assert_ran(201));
    ask(2).to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn handlers_whose_client_left_count_as_executions() {
    let setup = Setup::with(MemoryStore::new(), |builder| builder.max_executions(1), routes());
    setup.probe.close();
    let app = setup.app.clone();
    let request = tokio::spawn(async move { ask(0).to(&app).await });
    setup.probe.started(1).await;
    request.abort();
    setup.probe.left(1).await;
    assert_eq!(ask(1).to(&setup.app).await.status, 503);
    setup.probe.open();
    setup.settled().await;
    ask(1).to(&setup.app).await.assert_ran(201);
}

//! A request that is dropped at any of its awaits leaves the key free, running, or recorded, and nothing in between.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use futures_util::poll;
use idem_axum::{Idempotency, MemoryStore, idempotent};
use idem_tests::{Ask, Faults, Probe, Setup, post as send, within};
use tokio::task::yield_now;

#[idempotent(in_flight = wait("5s"))]
async fn order(State(probe): State<Probe>, body: String) -> String {
    yield_now().await;
    let run = probe.run().await;
    yield_now().await;
    format!("run {run}: {body}")
}

fn routes() -> Router<Probe> {
    Router::new().route("/", post(order))
}

fn ask() -> Ask {
    send("/").key("k").body("body")
}

/// Polls a request `polls` times and drops it; whether it was ready before.
async fn dropped_after(app: &Router, polls: usize) -> bool {
    let ask = ask();
    let mut request = Box::pin(ask.to(app));
    for _ in 0..polls {
        if poll!(&mut request).is_ready() {
            return true;
        }
        yield_now().await;
    }
    false
}

/// From a request that is never polled to one that gets its response.
async fn at_every_await(engine: impl Fn() -> (Idempotency, Option<MemoryStore>)) {
    for polls in 0.. {
        let (idempotency, store) = engine();
        let (app, probe) = Setup::mount(&idempotency, routes());
        let ready = dropped_after(&app, polls).await;
        let retry = ask().to(&app).await;
        assert_eq!((retry.status, retry.text()), (200, "run 1: body"), "after {polls} polls: {retry:?}");
        within("the end", idempotency.drain()).await;
        assert_eq!((probe.runs(), probe.finished()), (1, 1), "after {polls} polls");
        assert_eq!(idempotency.executions(), 0, "after {polls} polls");
        if let Some(usage) = store.map(|store| store.usage()) {
            assert_eq!((usage.in_flight, usage.completed), (0, 1), "after {polls} polls");
        }
        if ready {
            assert!(polls > 2, "the request was dropped at some await");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_memory() {
    at_every_await(|| {
        let store = MemoryStore::new();
        (Idempotency::new(store.clone()), Some(store))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn in_a_store_whose_replies_take_long() {
    for pending in [0, 1, 2, 5] {
        at_every_await(|| (Idempotency::new(Faults { pending, ..Faults::default() }.over_a_shelf()), None)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_dropped_at_any_poll_changes_nothing() {
    for polls in 0..4 {
        let store = MemoryStore::new();
        let idempotency = Idempotency::new(store.clone());
        let (app, probe) = Setup::mount(&idempotency, routes());
        probe.close();
        dropped_after(&app, 4).await;
        probe.started(1).await;
        let mut drained = Box::pin(idempotency.drain());
        let mut until = Box::pin(idempotency.drain_until(std::future::pending()));
        for _ in 0..polls {
            assert!(poll!(&mut drained).is_pending() && poll!(&mut until).is_pending());
            yield_now().await;
        }
        drop((drained, until));
        assert_eq!((idempotency.executions(), store.usage().in_flight), (1, 1), "after {polls} polls");
        probe.open();
        within("the drain", idempotency.drain()).await;
        assert_eq!((idempotency.executions(), store.usage().in_flight, store.usage().completed), (0, 0, 1));
        assert!(ask().to(&app).await.is_replay(), "after {polls} polls");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_requests_that_are_dropped_leaves_nothing_behind() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let (app, probe) = Setup::mount(&idempotency, routes());
    for key in 0..100 {
        let storm = (0..20).map(|number| {
            let app = app.clone();
            tokio::spawn(async move {
                let ask = send("/").key(&format!("key-{key}"));
                let mut request = Box::pin(ask.to(&app));
                for _ in 0..number / 2 {
                    if poll!(&mut request).is_ready() {
                        break;
                    }
                    yield_now().await;
                }
            })
        });
        futures_util::future::join_all(storm).await;
    }
    within("the end", idempotency.drain()).await;
    assert_eq!((store.usage().in_flight, probe.runs(), probe.finished()), (0, 100, 100));
}

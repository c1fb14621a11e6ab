//! The owner of a claim is gone, and what its handler did is unknown: `abandoned = refuse` and `rerun`.

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send};
use tokio::runtime::{Builder, Runtime};

#[idempotent]
async fn refuses(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

#[idempotent(abandoned = rerun)]
async fn reruns(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

#[idempotent(abandoned = rerun, in_flight = wait("5s"))]
async fn reruns_after_a_wait(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A handler that was dropped together with the runtime it ran on, as in a crash; the store outlives it.
fn torn_down(path: &str) -> (Setup, Ask) {
    let routes = Router::new()
        .route("/refuses", post(refuses))
        .route("/reruns", post(reruns))
        .route("/reruns-after-a-wait", post(reruns_after_a_wait));
    let setup = Setup::of(routes);
    setup.probe.close();
    let ask = send(path).key("k");
    let crashing = runtime();
    crashing.block_on(async {
        let (app, ask) = (setup.app.clone(), ask.clone());
        drop(tokio::spawn(async move { ask.to(&app).await }));
        setup.probe.started(1).await;
    });
    drop(crashing);
    setup.probe.open();
    assert_eq!((setup.probe.runs(), setup.probe.finished()), (1, 0));
    (setup, ask)
}

#[test]
fn by_default_a_retry_is_refused_and_nothing_runs() {
    let (setup, ask) = torn_down("/refuses");
    runtime().block_on(async {
        for _ in 0..3 {
            ask.to(&setup.app).await.assert_refused(409, "idempotency_outcome_unknown");
            ask.clone().body("other").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
        }
        assert_eq!((setup.probe.runs(), setup.store.usage().in_flight), (1, 1));
        // Not even when a record would be long gone: the outcome is unknown.
        setup.clock.advance(std::time::Duration::from_secs(1_000_000));
        ask.to(&setup.app).await.assert_refused(409, "idempotency_outcome_unknown");
    });
}

#[test]
fn where_the_policy_asks_for_it_one_retry_runs_again() {
    let (setup, ask) = torn_down("/reruns");
    runtime().block_on(async {
        ask.clone().body("other").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
        let crowd = futures_util::future::join_all((0..16).map(|_| {
            let (app, ask) = (setup.app.clone(), ask.clone());
            tokio::spawn(async move { ask.to(&app).await })
        }));
        let replies = crowd.await;
        assert!(replies.iter().all(|reply| matches!(reply.as_ref().unwrap().status, 200 | 409)));
        assert_eq!(setup.probe.runs(), 2);
        assert_eq!(ask.to(&setup.app).await.text(), "run 2");
    });
}

#[test]
fn a_waiter_takes_over_from_an_owner_that_is_gone() {
    let (setup, ask) = torn_down("/reruns-after-a-wait");
    runtime().block_on(async {
        assert_eq!(ask.to(&setup.app).await.text(), "run 2");
        assert_eq!(setup.store.usage().in_flight, 0);
    });
}

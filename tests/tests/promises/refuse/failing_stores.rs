//! Stores that fail: the client gets the real response, the claim stays, and nothing runs twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use idem_axum::{Idempotency, Policy, idempotent};
use idem_tests::{Ask, Connection, Faults, Logs, Probe, Server, Setup, post as send, within};

#[idempotent]
async fn order(State(probe): State<Probe>) -> (StatusCode, [(&'static str, &'static str); 2], String) {
    let run = probe.run().await;
    (StatusCode::CREATED, [("x-a", "1"), ("location", "/1")], format!("run {run}"))
}

fn setup(faults: Faults) -> (Idempotency, Router, Probe) {
    let idempotency = Idempotency::new(faults.over_a_shelf());
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/", post(order)));
    (idempotency, app, probe)
}

fn ask() -> Ask {
    send("/").key("KEY-canary")
}

fn failing(times: usize, copies: bool) -> Faults {
    Faults { failing: AtomicUsize::new(times), copies, ..Faults::default() }
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_fails_is_tried_again() {
    let (logs, _guard) = Logs::capture();
    let (idempotency, app, probe) = setup(failing(3, true));
    let first = ask().to(&app).await;
    first.assert_ran(201);
    within("the end of the execution", idempotency.drain()).await;
    ask().to(&app).await.assert_replay_of(&first);
    assert_eq!(probe.runs(), 1);
    let text = logs.text();
    // Nothing is lost yet, so it is a warning: at the first, the second and the fourth try, and so on.
    assert_eq!(text.matches("WARN").count(), 2, "{text}");
    assert!(!text.contains("ERROR") && !text.contains("KEY-canary"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn while_a_completion_is_tried_again_the_claim_stays() {
    let (_idempotency, app, probe) = setup(failing(usize::MAX, true));
    ask().to(&app).await.assert_ran(201);
    for _ in 0..3 {
        ask().to(&app).await.assert_refused(409, "idempotency_key_locked");
        ask().body("other").to(&app).await.assert_refused(422, "idempotency_key_mismatch");
    }
    assert_eq!(probe.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_fails_for_good_never_becomes_a_second_run() {
    for faults in [failing(usize::MAX, true), failing(1, false)] {
        let (logs, _guard) = Logs::capture();
        let (idempotency, app, probe) = setup(faults);
        ask().to(&app).await.assert_ran(201);
        // The engine gives up when the claim can live no longer.
        let day = std::time::Duration::from_secs(25 * 60 * 60);
        tokio::time::timeout(day, idempotency.drain()).await.expect("the engine gives up");
        let refused = ask().to(&app).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        assert_eq!(probe.runs(), 1);
        // Now it is lost, and an operator has to know, once.
        assert_eq!(logs.text().matches("ERROR").count(), 1, "{}", logs.text());
    }
}

#[tokio::test]
async fn a_record_cut_short_in_its_head_is_an_error_and_never_a_miss() {
    fn cut<const LENGTH: usize>(bytes: Bytes) -> Bytes {
        bytes.slice(..LENGTH)
    }
    let cuts: [fn(Bytes) -> Bytes; 8] =
        [cut::<0>, cut::<1>, cut::<2>, cut::<9>, cut::<10>, cut::<12>, cut::<15>, cut::<25>];
    for damage in cuts {
        let (_idempotency, app, probe) = setup(Faults { damage, ..Faults::default() });
        ask().to(&app).await.assert_ran(201);
        ask().to(&app).await.assert_refused(503, "idempotency_store_unavailable");
        assert_eq!(probe.runs(), 1);
    }
}

#[tokio::test]
async fn a_record_with_a_flipped_bit_never_desynchronises_a_connection() {
    use std::cell::Cell;
    thread_local!(static FLIPPED: Cell<usize> = const { Cell::new(0) });
    /// The expiry: a record that says it has expired has expired.
    const EXPIRY: std::ops::Range<usize> = 2..10;
    fn flip(bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        let bit = FLIPPED.get();
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
        bytes.into()
    }
    let (_idempotency, app, probe) = setup(Faults { damage: flip, ..Faults::default() });
    ask().to(&app).await.assert_ran(201);
    let server = Server::start(app).await;
    let mut connection = Connection::open(&server).await;
    for bit in (0..120 * 8).filter(|bit| !EXPIRY.contains(&(bit / 8))) {
        FLIPPED.set(bit);
        let reply = ask().over(&mut connection).await;
        assert!(reply.is_replay() || matches!(reply.status, 409 | 503), "bit {bit}: {reply:?}");
        assert_eq!(send("/none").over(&mut connection).await.status, 404, "bit {bit}");
    }
    assert_eq!(probe.runs(), 1);
}

const BEACON: Policy = Policy::DEFAULT.dangerously_run_without_store();

#[idempotent(policy = BEACON)]
async fn beacon(State(probe): State<Probe>) -> String {
    format!("run {}", probe.run().await)
}

#[tokio::test]
async fn a_policy_that_says_danger_runs_without_a_store_and_only_then() {
    for pending in [0, 2] {
        let (logs, _guard) = Logs::capture();
        let store = Faults { pending, ..Faults::default() }.over_a_shelf();
        let routes = Router::new().route("/", post(order)).route("/beacon", post(beacon));
        let idempotency = Idempotency::new(store.clone());
        let (app, probe) = Setup::mount(&idempotency, routes);
        let beacon = || send("/beacon").key("KEY-canary");

        let first = beacon().to(&app).await;
        first.assert_ran(200);
        beacon().to(&app).await.assert_replay_of(&first);
        beacon().body("other").to(&app).await.assert_refused(422, "idempotency_key_mismatch");

        store.hooks.down.store(true, Ordering::SeqCst);
        ask().to(&app).await.assert_refused(503, "idempotency_store_unavailable");
        assert_eq!(probe.runs(), 1, "an endpoint that does not say so refuses");
        for run in [2, 3] {
            beacon().to(&app).await.assert_ran(200);
            assert_eq!(probe.runs(), run);
        }
        let text = logs.text();
        assert!(text.contains("without protection") && !text.contains("KEY-canary"), "{text}");

        store.hooks.down.store(false, Ordering::SeqCst);
        beacon().to(&app).await.assert_replay_of(&first);
        within("the end of every execution", idempotency.drain()).await;
        assert_eq!((probe.runs(), idempotency.executions()), (3, 0));
    }
}

//! The TTL is exact to the clock, and counts from completion.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use http_body_util::BodyExt;
use idem_axum::{Idempotency, ManualClock, MemoryStore, idempotent};
use idem_tests::{Ask, Probe, Setup, feed, once, post as send, responding};

const NANOSECOND: Duration = Duration::from_nanos(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

#[idempotent(ttl = "1h")]
async fn order(State(probe): State<Probe>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", probe.run().await))
}

fn setup() -> Setup {
    Setup::of(Router::new().route("/", post(order)))
}

fn ask() -> Ask {
    send("/").key("k")
}

#[tokio::test]
async fn a_record_lives_to_the_last_nanosecond_of_its_ttl() {
    let setup = setup();
    let first = ask().to(&setup.app).await;
    setup.clock.advance(HOUR - NANOSECOND);
    ask().to(&setup.app).await.assert_replay_of(&first);
    ask().body("other").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    setup.clock.advance(NANOSECOND);
    let second = ask().to(&setup.app).await;
    second.assert_ran(201);
    assert_eq!((second.text(), setup.probe.runs()), ("run 2", 2));
    ask().to(&setup.app).await.assert_replay_of(&second);
}

#[tokio::test]
async fn replays_do_not_move_the_end() {
    let setup = setup();
    ask().to(&setup.app).await;
    for _ in 0..59 {
        setup.clock.advance(HOUR / 60);
        assert!(ask().to(&setup.app).await.is_replay());
        ask().body("refusals do not either").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    }
    setup.clock.advance(HOUR / 60);
    ask().to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn a_new_record_has_a_whole_ttl() {
    let setup = setup();
    ask().to(&setup.app).await;
    setup.clock.advance(HOUR + HOUR / 2);
    let second = ask().to(&setup.app).await;
    second.assert_ran(201);
    setup.clock.advance(HOUR - NANOSECOND);
    ask().to(&setup.app).await.assert_replay_of(&second);
    setup.clock.advance(NANOSECOND);
    ask().to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn the_ttl_counts_from_completion_and_a_running_handler_never_expires() {
    let setup = setup();
    setup.probe.close();
    let app = setup.app.clone();
    let running = tokio::spawn(async move { ask().to(&app).await });
    setup.probe.started(1).await;
    setup.clock.advance(1000 * HOUR);
    ask().to(&setup.app).await.assert_refused(409, "idempotency_key_locked");
    setup.probe.open();
    let first = running.await.unwrap();
    setup.clock.advance(HOUR - NANOSECOND);
    ask().to(&setup.app).await.assert_replay_of(&first);
    setup.clock.advance(NANOSECOND);
    ask().to(&setup.app).await.assert_ran(201);
}

#[tokio::test]
async fn an_expired_key_may_be_used_for_another_request() {
    let setup = setup();
    ask().to(&setup.app).await;
    setup.clock.advance(HOUR);
    let other = ask().body("other").to(&setup.app).await;
    other.assert_ran(201);
    ask().to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_of_the_ttl_a_crowd_runs_the_handler_once() {
    let setup = setup();
    for round in 1..=20 {
        let crowd = (0..16).map(|_| {
            let app = setup.app.clone();
            tokio::spawn(async move { ask().to(&app).await })
        });
        futures_util::future::join_all(crowd).await;
        assert_eq!(setup.probe.runs(), round);
        setup.clock.advance(HOUR);
    }
}

#[tokio::test]
async fn by_default_a_record_lives_a_day() {
    let setup = responding!([], || "x");
    ask().to(&setup.app).await;
    setup.clock.advance(24 * HOUR - NANOSECOND);
    assert!(ask().to(&setup.app).await.is_replay());
    setup.clock.advance(NANOSECOND);
    ask().to(&setup.app).await.assert_ran(200);
}

#[tokio::test]
async fn a_ttl_may_be_short_long_or_composed() {
    let ends = [
        (responding!([ttl = "1ns"], || "x"), NANOSECOND),
        (responding!([ttl = "90s"], || "x"), Duration::from_secs(90)),
        (responding!([ttl = "1h 30m"], || "x"), HOUR + HOUR / 2),
        (responding!([ttl = "7d"], || "x"), 7 * 24 * HOUR),
        (responding!([ttl = "36500d"], || "x"), 36_500 * 24 * HOUR),
    ];
    for (setup, ttl) in ends {
        ask().to(&setup.app).await;
        setup.clock.advance(ttl - NANOSECOND);
        assert!(ask().to(&setup.app).await.is_replay(), "{ttl:?}");
        setup.clock.advance(NANOSECOND);
        ask().to(&setup.app).await.assert_ran(200);
    }
}

#[tokio::test]
async fn the_ttl_of_a_stream_counts_from_its_end() {
    let (feed, body) = feed();
    let setup = responding!([ttl = "1h"], once(body));
    let response = ask().response(&setup.app).await;
    setup.clock.advance(2 * HOUR);
    drop(feed);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
    setup.clock.advance(HOUR - NANOSECOND);
    assert!(ask().to(&setup.app).await.is_replay());
}

/// A service may show the usage of its store before the engine is built.
#[tokio::test]
async fn a_store_older_than_its_engine_goes_by_the_engines_clock() {
    let store = MemoryStore::new();
    assert_eq!(store.usage().entries, 0);
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(store).clock(clock.clone()).build();
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/", post(order)));
    ask().to(&app).await.assert_ran(201);
    clock.advance(HOUR);
    ask().to(&app).await.assert_ran(201);
    assert_eq!(probe.runs(), 2);
}

//! What an operator learns and changes, over both databases.
#![cfg(all(feature = "postgres", feature = "sqlite"))]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{
    Abandoned, Attempt, BeginOptions, Claim, Endpoint, ExecutionInfo, Idempotency, Key, KeyReport, KeyStatus,
    ManualClock, Outcome, RecordBuilder, Rules, RunResult, Scope, SettleError, Settled, StorageKey, Store, StoreError,
};
use idem_sqlx::{PostgresStore, SqliteStore};
use idem_testkit::postgres::Postgres;
use idem_testkit::wait::until;
use tokio::sync::Barrier;

use crate::common::*;

fn parsed(key: &str) -> Key {
    Key::parse(key.as_bytes()).unwrap()
}

fn from_orders(key: &str) -> Attempt {
    let rules = Rules { ttl: TTL, ..Rules::DEFAULT };
    Attempt::new(StorageKey::new("", &Scope::GLOBAL, &parsed(key)), MINE, rules)
        .at(Endpoint::new("POST", "/orders/{id}"))
}

fn response(text: &str) -> Outcome {
    let mut builder = RecordBuilder::new();
    builder.put(text.as_bytes());
    Outcome::Record(builder)
}

async fn inspect(engine: &Idempotency, key: &str) -> Option<KeyReport> {
    engine.inspect(&Scope::GLOBAL, &parsed(key)).await.unwrap()
}

async fn settle(engine: &Idempotency, key: &str, outcome: Outcome) -> Result<Settled, SettleError> {
    engine.settle(&Scope::GLOBAL, &parsed(key), outcome).await
}

/// A store that counts, with what keeps it alive.
async fn postgres() -> (PostgresStore, Postgres) {
    let server = Postgres::quick().await;
    let store = PostgresStore::builder().count_replays(true).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    (store, server)
}

async fn sqlite() -> (SqliteStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::builder().count_replays(true).open(folder.path().join("idempotency.db")).await.unwrap();
    store.migrate().await.unwrap();
    (store, folder)
}

/// Leaves the claim of an execution at `POST /orders/{id}` whose owner is gone, or late.
async fn leave_claim<S: Store>(store: &S, key: &str) -> S::Claim {
    let attempt = from_orders(key);
    let claim = claim_for(store, &attempt.key, SHORT, TTL).await;
    drop(abandoned(store, &attempt.key).await);
    claim
}

async fn reports_the_state<S: Store + Clone>(store: S) {
    let engine = Idempotency::new(store.clone());
    assert!(inspect(&engine, "a").await.is_none(), "a free key");
    let (starts, started) = tokio::sync::oneshot::channel();
    let (ends, ended) = tokio::sync::oneshot::channel::<()>();
    let handler = move |_| {
        starts.send(()).unwrap();
        async move {
            ended.await.unwrap();
            executed("one")
        }
    };
    let running = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run(from_orders("a"), handler).await }
    });
    started.await.unwrap();
    let found = inspect(&engine, "a").await.unwrap();
    assert_eq!((found.status(), found.endpoint()), (KeyStatus::InFlight, Some("POST /orders/{id}")));
    assert!(found.lease_until() < found.expires_at(), "it is there for its TTL: {found:?}");
    assert!(found.age().unwrap() < Duration::from_secs(60), "{found:?}");
    assert!(matches!(settle(&engine, "a", response("two")).await, Err(SettleError::NotUnknown(KeyStatus::InFlight))));
    ends.send(()).unwrap();
    running.await.unwrap().unwrap();
    for replays in 0..3 {
        let found = counted(&engine, "a", replays).await;
        assert_eq!((found.status(), found.endpoint()), (KeyStatus::Recorded, Some("POST /orders/{id}")));
        assert_eq!((found.content().unwrap(), found.lease_until()), (&Bytes::from("one"), None));
        let left = found.expires_at().unwrap().since(found.started_at().unwrap());
        assert!(left > TTL - Duration::from_secs(60) && left < TTL + Duration::from_secs(60), "{left:?}");
        let replayed = engine.run(from_orders("a"), |_| async { executed("two") }).await;
        assert!(matches!(&replayed, Ok(RunResult::Replayed(replay)) if replay.content() == "one"), "{replayed:?}");
    }
    // A new owner is reported in place of the one that is gone.
    let mut again = from_orders("b");
    again.rules.abandoned = Abandoned::Rerun;
    drop(leave_claim(&store, "b").await);
    assert_eq!(inspect(&engine, "b").await.unwrap().endpoint(), None);
    let (told, handler_told) = tokio::sync::oneshot::channel();
    let asks = engine.clone();
    let handler = move |_| async move {
        told.send(inspect(&asks, "b").await).unwrap();
        executed("three")
    };
    engine.run(again, handler).await.unwrap();
    assert_eq!(handler_told.await.unwrap().unwrap().endpoint(), Some("POST /orders/{id}"));
    // Whether it has expired is for the database to say.
    let clock = ManualClock::new();
    clock.advance(2 * TTL);
    let ahead = Idempotency::builder(store).clock(clock).build();
    let replayed = ahead.run(from_orders("a"), |_| async { executed("two") }).await;
    assert!(matches!(replayed, Ok(RunResult::Replayed(_))), "{replayed:?}");
    assert!(engine.forget(&Scope::GLOBAL, &parsed("a")).await.unwrap());
    assert!(inspect(&engine, "a").await.is_none());
}

/// The task that counts ends with the runtime in which it began.
#[test]
fn replays_are_counted_after_the_end_of_an_earlier_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let key = key();
    let (store, _folder) = runtime().block_on(async {
        let (store, folder) = sqlite().await;
        leave_record(&store, &key, "response").await;
        assert_eq!(state_of(&store, &key).await, "completed: response");
        (store, folder)
    });
    runtime().block_on(async {
        assert_eq!(state_of(&store, &key).await, "completed: response");
        until("replays are counted", async || store.inspect(&key).await.unwrap().unwrap().replays != Some(0)).await;
    });
}

/// The key, once this many replays of its record are counted.
async fn counted(engine: &Idempotency, key: &str, replays: u64) -> KeyReport {
    let mut report = None;
    until("the replays are counted", async || {
        let found = inspect(engine, key).await.unwrap();
        let counted = found.replays().expect("this store counts");
        assert!(counted <= replays, "{counted} of {replays}");
        report = (counted == replays).then_some(found);
        report.is_some()
    })
    .await;
    report.unwrap()
}

async fn settles_an_unknown_outcome<S: Store + Clone>(store: S) {
    let engine = Idempotency::new(store.clone());
    let outcomes =
        [(response("found"), Some(KeyStatus::Recorded)), (Outcome::NotReplayable, Some(KeyStatus::NotReplayable))];
    for (number, (outcome, state)) in outcomes.into_iter().chain([(Outcome::Release, None)]).enumerate() {
        let key = number.to_string();
        assert!(matches!(settle(&engine, &key, response("none")).await, Err(SettleError::Free)));
        let late = leave_claim(&store, &key).await;
        assert_eq!(inspect(&engine, &key).await.unwrap().status(), KeyStatus::OutcomeUnknown);
        assert_eq!(settle(&engine, &key, outcome).await.unwrap(), Settled::Now);
        assert_eq!(inspect(&engine, &key).await.map(|found| found.status()), state);
        let done = late.complete(record("late"), TTL).await;
        assert!(matches!(done, Err(StoreError::Lost)), "an owner that is late changes nothing: {done:?}");
        assert_eq!(inspect(&engine, &key).await.map(|found| found.status()), state);
    }
    assert_eq!(settle(&engine, "0", response("found")).await.unwrap(), Settled::Already);
    let other = settle(&engine, "0", response("else")).await;
    assert!(matches!(other, Err(SettleError::NotUnknown(KeyStatus::Recorded))), "{other:?}");
}

/// An operator whose version cannot read the info of a claim has none to settle it with.
async fn keeps_the_info_of_a_claim_that_is_taken_over_without_one<S: Store>(store: S) {
    let key = key();
    let info = ExecutionInfo::from_bytes(&[&[1, 0][..], &[5; 28], b"POST /orders/{id}"].concat()).unwrap();
    drop(store.begin(&key, &MINE, &BeginOptions::new(SHORT, TTL).with_info(info.clone())).await.unwrap());
    abandoned(&store, &key).await.renew(LEASE).await.unwrap();
    assert_eq!(store.inspect(&key).await.unwrap().unwrap().info, Some(info));
}

/// Two operators, each with its own engine, and an owner that is only late: one of the three ends the claim.
async fn one_of_three_ends_a_claim<S: Store + Clone>(store: S) {
    for round in 0..20 {
        let key = format!("race-{round}");
        let late = leave_claim(&store, &key).await;
        let together = Arc::new(Barrier::new(3));
        let operator = |text: &'static str| {
            let (engine, key, together) = (Idempotency::new(store.clone()), key.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                settle(&engine, &key, response(text)).await
            })
        };
        let (one, two) = (operator("one"), operator("two"));
        together.wait().await;
        let late = late.complete(recorded("late", from_orders(&key)).await, TTL).await;
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        let engine = Idempotency::new(store.clone());
        let found = inspect(&engine, &key).await.unwrap();
        let mut winners = Vec::new();
        for (name, settled) in [("one", &one), ("two", &two)] {
            match settled {
                Ok(Settled::Now) => winners.push(name),
                Err(SettleError::NotUnknown(KeyStatus::Recorded | KeyStatus::InFlight)) => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        match late {
            Ok(()) => winners.push("late"),
            Err(StoreError::Lost) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(found.content().unwrap(), winners[0], "what was acknowledged is kept");
    }
}

/// A record as the engine makes it.
async fn recorded(text: &'static str, attempt: Attempt) -> idem_runtime::Record {
    let store = idem_runtime::MemoryStore::new();
    let engine = Idempotency::new(store.clone());
    engine.run(attempt, |_| async { executed(text) }).await.unwrap();
    match store.begin(&attempt.key, &attempt.fingerprint, &OPTIONS).await {
        Ok(idem_runtime::Begin::Completed(record)) => record,
        begun => panic!("{}", shown(&begun)),
    }
}

#[tokio::test]
async fn postgres_reports_the_state_of_a_key() {
    let (store, _server) = postgres().await;
    reports_the_state(store).await;
}

#[tokio::test]
async fn sqlite_reports_the_state_of_a_key() {
    let (store, _folder) = sqlite().await;
    reports_the_state(store).await;
}

#[tokio::test]
async fn postgres_settles_an_unknown_outcome() {
    let (store, _server) = postgres().await;
    settles_an_unknown_outcome(store).await;
}

#[tokio::test]
async fn sqlite_settles_an_unknown_outcome() {
    let (store, _folder) = sqlite().await;
    settles_an_unknown_outcome(store).await;
}

#[tokio::test]
async fn postgres_keeps_the_info_of_a_claim_that_is_taken_over_without_one() {
    let (store, _server) = postgres().await;
    keeps_the_info_of_a_claim_that_is_taken_over_without_one(store).await;
}

#[tokio::test]
async fn sqlite_keeps_the_info_of_a_claim_that_is_taken_over_without_one() {
    let (store, _folder) = sqlite().await;
    keeps_the_info_of_a_claim_that_is_taken_over_without_one(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_postgres_one_of_three_ends_a_claim() {
    let (store, _server) = postgres().await;
    one_of_three_ends_a_claim(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_sqlite_one_of_three_ends_a_claim() {
    let (store, _folder) = sqlite().await;
    one_of_three_ends_a_claim(store).await;
}

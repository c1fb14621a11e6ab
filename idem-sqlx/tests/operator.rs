//! What an operator learns and changes, over both databases.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

mod asked;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use asked::*;
use bytes::Bytes;
use idem_runtime::{
    Abandoned, Answer, Attempt, Claim, Draft, Endpoint, Idempotency, Inspection, Key, Outcome, Rules, Scope,
    SettleError, Settled, State, Store, StoreError,
};
use idem_servers::postgres::Postgres;
use idem_sqlx::{PostgresStore, Problem, SqliteStore};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::sync::Barrier;
use tokio::time::sleep;

/// What both migrations folders begin with: the table of the first version.
const FIRST: [&str; 2] =
    [include_str!("../migrations/postgres/0001_table.sql"), include_str!("../migrations/sqlite/0001_table.sql")];

fn parsed(key: &str) -> Key {
    Key::parse(key.as_bytes()).unwrap()
}

fn from_orders(key: &str) -> Attempt {
    let rules = Rules { ttl: TTL, wait: None, abandoned: Abandoned::Refuse };
    Attempt::new(idem_runtime::StorageKey::new(&Scope::GLOBAL, &parsed(key)), MINE, rules)
        .at(Endpoint::new("POST", "/orders/{id}"))
}

fn answer(text: &str) -> Outcome {
    let mut draft = Draft::new();
    draft.put(text.as_bytes());
    Outcome::Answer(draft)
}

async fn inspect(engine: &Idempotency, key: &str) -> Option<Inspection> {
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

/// Leaves the claim of an execution at `POST /orders/{id}` whose owner is gone, or late: it comes back.
async fn left<S: Store>(store: &S, key: &str) -> S::Claim {
    let attempt = from_orders(key);
    let claim = claim_for(store, &attempt.key, SHORT, TTL).await;
    drop(abandoned(store, &attempt.key).await);
    claim
}

async fn tells<S: Store + Clone>(store: S) {
    let engine = Idempotency::new(store.clone());
    assert!(inspect(&engine, "a").await.is_none(), "a free key");
    let (starts, started) = tokio::sync::oneshot::channel();
    let (ends, ended) = tokio::sync::oneshot::channel::<()>();
    let body = move || {
        starts.send(()).unwrap();
        async move {
            ended.await.unwrap();
            answered("one")
        }
    };
    let running = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run(from_orders("a"), body).await }
    });
    started.await.unwrap();
    let found = inspect(&engine, "a").await.unwrap();
    assert_eq!((found.state(), found.endpoint()), (State::InFlight, Some("POST /orders/{id}")));
    assert!(found.lease_until() < found.expires_at(), "it is there for its TTL: {found:?}");
    assert!(found.age().unwrap() < Duration::from_secs(60), "{found:?}");
    assert!(matches!(settle(&engine, "a", answer("two")).await, Err(SettleError::Stands(State::InFlight))));
    ends.send(()).unwrap();
    running.await.unwrap().unwrap();
    for replays in 0..3 {
        let found = counted(&engine, "a", replays).await;
        assert_eq!((found.state(), found.endpoint()), (State::Recorded, Some("POST /orders/{id}")));
        assert_eq!((found.answer().unwrap(), found.lease_until()), (&Bytes::from("one"), None));
        let left = found.expires_at().unwrap().since(found.started_at().unwrap());
        assert!(left > TTL - Duration::from_secs(60) && left < TTL + Duration::from_secs(60), "{left:?}");
        let replayed = engine.run(from_orders("a"), || async { answered("two") }).await;
        assert!(matches!(&replayed, Ok(Answer::Recorded(replay)) if replay.answer() == "one"), "{replayed:?}");
    }
    assert!(engine.forget(&Scope::GLOBAL, &parsed("a")).await.unwrap());
    assert!(inspect(&engine, "a").await.is_none());
}

/// The key, once so many replays of its record are counted.
async fn counted(engine: &Idempotency, key: &str, replays: u64) -> Inspection {
    for _ in 0..2000 {
        let found = inspect(engine, key).await.unwrap();
        match found.replays() {
            Some(counted) if counted == replays => return found,
            Some(counted) => assert!(counted < replays, "{counted} of {replays}"),
            None => panic!("this store counts"),
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("not {replays}, but {:?}", inspect(engine, key).await)
}

async fn settles<S: Store + Clone>(store: S) {
    let engine = Idempotency::new(store.clone());
    let outcomes = [(answer("found"), Some(State::Recorded)), (Outcome::NotReplayable, Some(State::NotReplayable))];
    for (number, (outcome, state)) in outcomes.into_iter().chain([(Outcome::Release, None)]).enumerate() {
        let key = number.to_string();
        assert!(matches!(settle(&engine, &key, answer("none")).await, Err(SettleError::Free)));
        let late = left(&store, &key).await;
        assert_eq!(inspect(&engine, &key).await.unwrap().state(), State::OutcomeUnknown);
        assert_eq!(settle(&engine, &key, outcome).await.unwrap(), Settled::Now);
        assert_eq!(inspect(&engine, &key).await.map(|found| found.state()), state);
        let done = late.complete(record("late"), TTL).await;
        assert!(matches!(done, Err(StoreError::Lost)), "an owner that is late changes nothing: {done:?}");
        assert_eq!(inspect(&engine, &key).await.map(|found| found.state()), state);
    }
    assert_eq!(settle(&engine, "0", answer("found")).await.unwrap(), Settled::Already);
    let other = settle(&engine, "0", answer("else")).await;
    assert!(matches!(other, Err(SettleError::Stands(State::Recorded))), "{other:?}");
}

/// Two operators, each with an engine of its own, and an owner that is only late: one of the three ends the claim.
async fn races<S: Store + Clone>(store: S) {
    for round in 0..20 {
        let key = format!("race-{round}");
        let late = left(&store, &key).await;
        let together = Arc::new(Barrier::new(3));
        let operator = |text: &'static str| {
            let (engine, key, together) = (Idempotency::new(store.clone()), key.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                settle(&engine, &key, answer(text)).await
            })
        };
        let (one, two) = (operator("one"), operator("two"));
        together.wait().await;
        let late = late.complete(kept("late", from_orders(&key)).await, TTL).await;
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        let engine = Idempotency::new(store.clone());
        let stands = inspect(&engine, &key).await.unwrap();
        let mut winners = Vec::new();
        for (name, settled) in [("one", &one), ("two", &two)] {
            match settled {
                Ok(Settled::Now) => winners.push(name),
                Err(SettleError::Stands(State::Recorded | State::InFlight)) => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        match late {
            Ok(()) => winners.push("late"),
            Err(StoreError::Lost) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(stands.answer().unwrap(), winners[0], "what was acknowledged stands");
    }
}

/// A record as the engine makes it.
async fn kept(text: &'static str, attempt: Attempt) -> idem_runtime::Record {
    let store = idem_runtime::MemoryStore::new();
    let engine = Idempotency::new(store.clone());
    engine.run(attempt, || async { answered(text) }).await.unwrap();
    match store.begin(&attempt.key, &attempt.fingerprint, LEASE).await {
        Ok(idem_runtime::Begin::Completed(record)) => record,
        begun => panic!("{}", shown(&begun)),
    }
}

/// The rows of the table of the first version are as good as ever once it was migrated; before that, an error says what to do.
async fn migrates<S, F>(store: S, migrate: F)
where
    S: Store + Clone,
    F: Future<Output = ()>,
{
    let Err(before) = store.begin(&key(), &MINE, LEASE).await else { panic!("a column is missing") };
    assert!(matches!(problem(&before), Problem::TableOutdated { .. }), "{before:?}");
    migrate.await;
    let found = store.inspect(&numbered(7)).await.unwrap().unwrap();
    assert_eq!((found.origin, found.replays), (None, None), "nobody knows of an old row");
    assert_eq!(stands(&store, &numbered(7)).await, "in flight");
    leave_record(&store, &key(), "new").await;
}

#[tokio::test]
async fn postgres_tells_what_stands_under_a_key() {
    let (store, _server) = postgres().await;
    tells(store).await;
}

#[tokio::test]
async fn sqlite_tells_what_stands_under_a_key() {
    let (store, _folder) = sqlite().await;
    tells(store).await;
}

#[tokio::test]
async fn postgres_settles_what_nobody_knows() {
    let (store, _server) = postgres().await;
    settles(store).await;
}

#[tokio::test]
async fn sqlite_settles_what_nobody_knows() {
    let (store, _folder) = sqlite().await;
    settles(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_postgres_one_ends_a_claim() {
    let (store, _server) = postgres().await;
    races(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_sqlite_one_ends_a_claim() {
    let (store, _folder) = sqlite().await;
    races(store).await;
}

#[tokio::test]
async fn a_table_of_the_first_version_in_postgres_is_brought_up_to_date() {
    let server = Postgres::quick().await;
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let table = FIRST[0].replace("{table}", "idempotency").replace("{index}", "idempotency_expires_at");
    connection.execute(AssertSqlSafe(table)).await.unwrap();
    let row = format!(
        "CREATE TABLE idempotency_migrations (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now()); \
         INSERT INTO idempotency_migrations VALUES (1); \
         INSERT INTO idempotency (key, owner, fingerprint, lease_until, expires_at) VALUES \
             ('\\x{}', '\\x{}', '\\x{}', now() + interval '1 hour', now() + interval '1 day')",
        hex(&numbered(7)),
        "00".repeat(16),
        "07".repeat(32)
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(row))).await.unwrap();
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    migrates(store.clone(), async { store.migrate().await.unwrap() }).await;
}

#[tokio::test]
async fn a_table_of_the_first_version_in_sqlite_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("idempotency.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let mut connection = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let table = FIRST[1].replace("{table}", "idempotency").replace("{index}", "idempotency_expires_at");
    let row = format!(
        "{table}; CREATE TABLE idempotency_migrations (version INTEGER NOT NULL PRIMARY KEY) STRICT; \
         INSERT INTO idempotency_migrations VALUES (1); \
         INSERT INTO idempotency (key, owner, fingerprint, lease_until, expires_at) VALUES \
             (x'{}', x'{}', x'{}', unixepoch() * 1000 + 3600000, unixepoch() * 1000 + 86400000)",
        hex(&numbered(7)),
        "00".repeat(16),
        "07".repeat(32)
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(row))).await.unwrap();
    migrates(store.clone(), async { store.migrate().await.unwrap() }).await;
}

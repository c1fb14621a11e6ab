//! PostgreSQL that refuses: for want of connections or room, because of others, or for good.
#![cfg(feature = "postgres")]

use std::time::{Duration, Instant};

use idem_runtime::{Begin, BeginOptions, Claim, Idempotency, RefusalReason, RunResult, Store, StoreError};
use idem_sqlx::{PostgresStore, Problem};
use idem_testkit::postgres::Postgres;
use idem_testkit::proxy::Proxy;
use idem_testkit::wait::until;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};
use tokio::task::JoinSet;

use crate::common::*;

async fn with_a_store() -> (Postgres, PostgresStore) {
    let server = Postgres::quick().await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    (server, store)
}

/// From now on every second and third write of a row fails with `state`, and the others pass.
fn fail_twice(server: &Postgres, state: &str, event: &str) {
    server.sql(&format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('tries') % 3 <> 0 THEN RAISE EXCEPTION 'as planned' USING ERRCODE = '{state}'; END IF; \
             RETURN NEW; END $$; \
         DROP SEQUENCE IF EXISTS tries; CREATE SEQUENCE tries; \
         DROP TRIGGER IF EXISTS fail ON idempotency; \
         CREATE TRIGGER fail BEFORE {event} ON idempotency FOR EACH ROW EXECUTE FUNCTION fail()"
    ));
}

fn tries(server: &Postgres) -> String {
    server.sql("SELECT last_value FROM tries").trim().to_owned()
}

#[tokio::test]
async fn what_others_cause_is_retried_and_takes_effect_once() {
    let (server, store) = with_a_store().await;
    for state in ["40001", "40P01", "55P03", "57P01"] {
        let key = key();
        fail_twice(&server, state, "INSERT");
        let mut claimed = claim(&store, &key).await;
        assert_eq!(tries(&server), "3", "{state}: begin");
        fail_twice(&server, state, "UPDATE");
        claimed.renew(LEASE).await.unwrap();
        assert_eq!(tries(&server), "3", "{state}: renew");
        claimed.complete(record("response"), TTL).await.unwrap();
        assert_eq!(tries(&server), "6", "{state}: complete");
        assert_eq!(state_of(&store, &key).await, "completed: response", "{state}");
    }
}

#[tokio::test]
async fn what_persists_is_an_error_within_the_time_limit() {
    let server = Postgres::quick().await;
    let store = PostgresStore::builder().timeout(Duration::from_millis(300)).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    fail_twice(&server, "40001", "INSERT");
    server.sql("ALTER SEQUENCE tries INCREMENT 3");
    let asked = Instant::now();
    let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
    assert!(matches!(problem(&refused), Problem::Busy(_)), "{refused:?}");
    assert!(asked.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_connection_is_replaced_in_the_middle_of_a_step() {
    let (server, store) = with_a_store().await;
    let (held, mut other) = (key(), PgConnection::connect(&server.url()).await.unwrap());
    leave_record(&store, &held, "response").await;
    server.sql(&format!("UPDATE idempotency SET expires_at = now() WHERE key = '\\x{}'", hex(&held)));
    // The claim has to wait for the row.
    let mut transaction = other.begin().await.unwrap();
    transaction.execute("SELECT * FROM idempotency FOR UPDATE").await.unwrap();
    let begins = tokio::spawn({
        let store = store.clone();
        async move { state_of(&store, &held).await }
    });
    server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", "1").await;
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
    transaction.rollback().await.unwrap();
    assert_eq!(begins.await.unwrap(), "claimed");
}

#[tokio::test]
async fn a_pool_that_is_exhausted_is_an_error_in_time_and_says_so() {
    let server = Postgres::quick().await;
    let builder = PostgresStore::builder().max_connections(1).timeout(Duration::from_millis(400));
    let store = builder.connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    transaction.execute("LOCK TABLE idempotency").await.unwrap();
    // One after the other keeps the connection for half of the time.
    let mut begins = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        begins.spawn(async move { store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err() });
    }
    let errors = begins.join_all().await;
    let exhausted = errors.iter().filter(|error| matches!(problem(error), Problem::NoConnection { .. })).count();
    assert!(exhausted >= 1, "{errors:?}");
    let text = errors.iter().map(|error| std::error::Error::source(error).unwrap().to_string()).collect::<String>();
    assert!(text.contains("`begin` failed, and the handler does not run"), "{text}");
    assert!(text.contains("max_connections"), "{text}");
    transaction.rollback().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_was_dropped_half_way_returns_its_connection() {
    let server = Postgres::quick().await;
    let store = PostgresStore::builder().max_connections(1).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    transaction.execute("LOCK TABLE idempotency").await.unwrap();
    let dropped = key();
    let begin = tokio::spawn({
        let store = store.clone();
        async move { store.begin(&dropped, &MINE, &BeginOptions::new(SHORT, TTL)).await.map(|_| ()) }
    });
    server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", "1").await;
    begin.abort();
    assert!(begin.await.unwrap_err().is_cancelled());
    transaction.rollback().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    // Its own key is free, or a claim that is abandoned when its lease has expired.
    match store.begin(&dropped, &MINE, &OPTIONS).await {
        Ok(Begin::Claimed(_) | Begin::Abandoned(_)) => {}
        Ok(Begin::InFlight(_)) => drop(abandoned(&store, &dropped).await),
        begun => panic!("{}", shown(&begun)),
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_keys_serves_old_ones_and_records_that_a_handler_ran() {
    let (server, store) = with_a_store().await;
    let engine = Idempotency::new(store.clone());
    let (old, running) = (key(), key());
    leave_record(&store, &old, "response").await;
    server.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.record IS NULL OR length(NEW.record) > 200 THEN \
                 RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END IF; RETURN NEW; END $$",
    );
    let fill = "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON idempotency FOR EACH ROW EXECUTE FUNCTION fail()";
    let ran = engine.run(attempt(running), {
        let url = server.url();
        move |_| async move {
            PgConnection::connect(&url).await.unwrap().execute(fill).await.unwrap();
            executed(&"long ".repeat(100))
        }
    });
    assert!(matches!(ran.await, Ok(RunResult::Executed(_))), "the client gets its response");
    let again = engine.run(attempt(running), |_| async { executed("another") }).await;
    assert!(matches!(again, Err(RefusalReason::NotReplayable)), "{again:?}");
    assert!(matches!(store.begin(&key(), &MINE, &OPTIONS).await, Err(StoreError::Full)));
    let new = engine.run(attempt(key()), |_| async { executed("new") }).await;
    assert!(matches!(new, Err(RefusalReason::StoreFull)), "{new:?}");
    assert_eq!(state_of(&store, &old).await, "completed: response");
}

#[tokio::test]
async fn a_read_only_database_is_an_error_that_says_what_to_do() {
    let server = Postgres::quick().await;
    let store = PostgresStore::builder().timeout(Duration::from_secs(1)).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let claimed = claim(&store, &key()).await;
    let copy = claimed.try_clone().unwrap();
    server.sql("ALTER DATABASE postgres SET default_transaction_read_only = on");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '' AND pid <> pg_backend_pid()");
    for error in [
        store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err(),
        claimed.complete(record("response"), TTL).await.unwrap_err(),
    ] {
        assert!(matches!(problem(&error), Problem::ReadOnly), "{error:?}");
        assert!(problem(&error).to_string().contains("connect to the primary"));
    }
    server.sql("BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '' AND pid <> pg_backend_pid()");
    copy.complete(record("response"), TTL).await.unwrap();
}

#[tokio::test]
async fn a_database_that_was_read_only_and_then_silent_is_reported_as_read_only() {
    let server = Postgres::quick().await;
    let proxy = Proxy::to(server.port()).await;
    PostgresStore::connect(&server.url()).await.unwrap().migrate().await.unwrap();
    server.sql("ALTER DATABASE postgres SET default_transaction_read_only = on");
    let builder = PostgresStore::builder().timeout(Duration::from_secs(2));
    let store = builder.connect(&server.url_through(proxy.port())).await.unwrap();
    let step = tokio::spawn(async move { store.begin(&key(), &MINE, &OPTIONS).await });
    // A connection on which a statement was refused is not used again.
    until("the statement was refused", async || proxy.connections() > 1).await;
    proxy.black_hole();
    let refused = step.await.unwrap().unwrap_err();
    assert!(matches!(problem(&refused), Problem::ReadOnly), "{refused:?}");
}

#[tokio::test]
async fn a_missing_table_is_an_error_that_says_what_to_call() {
    let server = Postgres::quick().await;
    for builder in [PostgresStore::builder(), PostgresStore::builder().schema("nowhere")] {
        let store = builder.connect(&server.url()).await.unwrap();
        let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
        assert!(matches!(problem(&refused), Problem::TableMissing { .. }), "{refused:?}");
        assert!(problem(&refused).to_string().contains("Call `migrate()`"), "{}", problem(&refused));
        // A waiter on it is not kept, nor let spin.
        let asked = Instant::now();
        store.ended(&key()).await;
        assert!(asked.elapsed() > Duration::from_millis(100));
        store.migrate().await.unwrap();
        assert_eq!(state_of(&store, &key()).await, "claimed");
    }
}

#[tokio::test]
async fn a_damaged_row_is_an_error_and_never_a_free_key() {
    let (server, store) = with_a_store().await;
    let change = async |change: &str| {
        let damaged = key();
        leave_record(&store, &damaged, "response").await;
        server.sql(&format!("UPDATE idempotency SET {change} WHERE key = '\\x{}'", hex(&damaged)));
        let state = state_of(&store, &damaged).await;
        assert!(state.contains("unreadable") && state.contains("damaged"), "{change}: {state}");
        let row = format!("SELECT count(*) FROM idempotency WHERE key = '\\x{}'", hex(&damaged));
        assert_eq!(server.sql(&row).trim(), "1", "{change}");
    };
    let other = key();
    leave_record(&store, &other, "of another key").await;
    change("record = set_byte(record, 5, get_byte(record, 5) # 1)").await;
    change("record = set_byte(record, length(record) - 1, 0)").await;
    change("record = substring(record FOR length(record) - 1)").await;
    change("record = ''").await;
    change(&format!("record = (SELECT record FROM idempotency WHERE key = '\\x{}')", hex(&other))).await;
    change("fingerprint = substring(fingerprint FOR 31)").await;
    change("owner = ''").await;
    // One whose fingerprint is damaged is one of another request.
    let mismatched = key();
    leave_record(&store, &mismatched, "response").await;
    let change = "UPDATE idempotency SET fingerprint = set_byte(fingerprint, 0, 1) WHERE key";
    server.sql(&format!("{change} = '\\x{}'", hex(&mismatched)));
    let begun = store.begin(&mismatched, &MINE, &OPTIONS).await;
    assert!(matches!(&begun, Ok(Begin::Completed(record)) if *record.fingerprint() != MINE), "{}", shown(&begun));
    // A record whose bytes are lost altogether looks like a claim, which refuses as well.
    let lost = key();
    leave_record(&store, &lost, "response").await;
    server.sql(&format!("UPDATE idempotency SET record = NULL WHERE key = '\\x{}'", hex(&lost)));
    assert_eq!(state_of(&store, &lost).await, "in flight");
}

//! Waiting for the end of a claim, leases that are renewed, and what the engine makes of both.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use idem_runtime::{Abandoned, Attempt, Claim, Idempotency, RefusalReason, Rules, RunResult, Store};
use idem_sqlx::PostgresStore;
use idem_testkit::postgres::Postgres;
use idem_testkit::proxy::Proxy;
use idem_testkit::wait::within;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::common::*;

/// Two processes, as far as the server can tell.
async fn two_stores() -> (Postgres, PostgresStore, PostgresStore) {
    let server = Postgres::quick().await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let other = PostgresStore::connect(&server.url()).await.unwrap();
    (server, store, other)
}

/// How long each of `keys` keys waits in `there` after its claim in `here` was completed, released, or revoked and forgotten. By then the
/// waiters have asked so often that they pause for long.
async fn latencies(here: &PostgresStore, there: &PostgresStore, keys: usize) -> Vec<Duration> {
    let mut waits = JoinSet::new();
    let mut claims = Vec::new();
    for number in 0..keys {
        let key = key();
        claims.push((key, claim(here, &key).await));
        let there = there.clone();
        waits.spawn(async move {
            there.ended(&key).await;
            (number, key, Instant::now())
        });
    }
    sleep(Duration::from_millis(1500)).await;
    assert!(waits.try_join_next().is_none(), "a wait ended before its claim did");
    for (number, (key, claim)) in claims.into_iter().enumerate() {
        match number % 3 {
            0 => claim.complete(record("response"), TTL).await.unwrap(),
            1 => claim.release().await.unwrap(),
            _ => assert!(here.revoke(&key).await.unwrap() && here.forget(&key).await.unwrap()),
        }
    }
    let ended = Instant::now();
    let mut latencies = Vec::new();
    // Only now: between the two steps of the last kind a waiter may see the first.
    for (number, key, woken) in waits.join_all().await {
        assert_eq!(state_of(there, &key).await, ["completed: response", "claimed", "claimed"][number % 3]);
        latencies.push(woken.saturating_duration_since(ended));
    }
    latencies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_in_another_process_are_notified_at_once() {
    let (server, here, there) = two_stores().await;
    let latencies = latencies(&here, &there, 12).await;
    assert!(latencies.iter().all(|&latency| latency < Duration::from_millis(150)), "{latencies:?}");
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    assert_eq!(server.sql(listens).trim(), "1", "one connection listens, for all that wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_without_a_notification_poll() {
    let (server, here, there) = two_stores().await;
    server.sql(
        "CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.awaited = false; RETURN NEW; END $$; \
         CREATE TRIGGER deaf BEFORE UPDATE ON idempotency FOR EACH ROW EXECUTE FUNCTION deaf()",
    );
    let latencies = latencies(&here, &there, 4).await;
    assert!(latencies.iter().all(|&latency| latency < Duration::from_millis(1500)), "{latencies:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_are_notified_again_after_the_listening_connection_was_lost() {
    let (server, here, there) = two_stores().await;
    latencies(&here, &there, 1).await;
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'");
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    // Something must wait for the connection to be made again.
    let key = key();
    let _claim = claim(&here, &key).await;
    let waits = tokio::spawn({
        let there = there.clone();
        async move { there.ended(&key).await }
    });
    server.wait_until(listens, "1").await;
    let latencies = latencies(&here, &there, 8).await;
    waits.abort();
    assert!(latencies.iter().all(|&latency| latency < Duration::from_millis(150)), "{latencies:?}");
}

#[tokio::test]
async fn a_wait_ends_with_the_lease_with_a_release_and_at_once_if_the_key_is_free() {
    let (_server, here, there) = two_stores().await;
    let (expires, released) = (key(), key());
    let _claim = claim_for(&here, &expires, SHORT, TTL).await;
    there.ended(&expires).await;
    assert_eq!(state_of(&there, &expires).await, "abandoned");
    let claim = claim(&here, &released).await;
    let (_, released) = tokio::join!(there.ended(&released), async {
        tokio::task::yield_now().await;
        claim.release().await
    });
    released.unwrap();
    there.ended(&key()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_waiters_sends_no_notification() {
    let (server, here, there) = two_stores().await;
    let (quiet, awaited) = (key(), key());
    let claim = claim(&here, &awaited).await;
    let waits = tokio::spawn(async move { there.ended(&awaited).await });
    let listening = "SELECT query FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    server.wait_until("SELECT count(*) FROM idempotency WHERE awaited", "1").await;
    server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'", "1").await;
    let channel = server.sql(listening);
    let mut listener = sqlx::postgres::PgListener::connect(&server.url()).await.unwrap();
    listener.listen(channel.trim().trim_start_matches("LISTEN ").trim_matches('"')).await.unwrap();
    leave_record(&here, &quiet, "response").await;
    assert!(here.forget(&quiet).await.unwrap());
    crate::common::claim(&here, &quiet).await.release().await.unwrap();
    claim.complete(record("response"), TTL).await.unwrap();
    assert_eq!(listener.recv().await.unwrap().payload(), hex(&awaited));
    waits.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_outlives_its_lease_is_renewed_runs_once_and_its_waiters_get_its_response() {
    let (_server, here, there) = two_stores().await;
    let lease = Duration::from_millis(400);
    let here = Idempotency::builder(here).lease(lease).build();
    let there = Idempotency::builder(there).lease(lease).build();
    let (key, runs) = (key(), Arc::new(AtomicUsize::new(0)));
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let first = tokio::spawn({
        let (runs, begun, end) = (Arc::clone(&runs), Arc::clone(&begun), Arc::clone(&end));
        let handler = move |_| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            begun.notify_one();
            end.notified().await;
            executed("response")
        };
        async move { here.run(attempt(key), handler).await }
    });
    begun.notified().await;
    let ask = async |wait| {
        let rules = Rules { ttl: TTL, wait, abandoned: Abandoned::Rerun, ..Rules::DEFAULT };
        let runs = Arc::clone(&runs);
        let handler = move |_| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            executed("another response")
        };
        there.run(Attempt::new(key, MINE, rules), handler).await
    };
    // Through several leases the claim is never abandoned.
    let start = Instant::now();
    while start.elapsed() < 4 * lease {
        let refused = ask(None).await;
        assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
        sleep(lease / 20).await;
    }
    let (waited, ()) = tokio::join!(ask(Some(Duration::from_secs(10))), async {
        sleep(lease).await;
        end.notify_one();
    });
    assert!(matches!(waited, Ok(RunResult::Replayed(replay)) if replay.content() == "response"));
    assert!(matches!(first.await.unwrap(), Ok(RunResult::Executed(response)) if response == "response"));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_retry_after_its_owner_is_gone_is_refused_or_runs_again_as_the_policy_says() {
    let (_server, here, there) = two_stores().await;
    let key = key();
    drop(claim_for(&here, &key, SHORT, TTL).await);
    drop(abandoned(&here, &key).await);
    let engine = Idempotency::new(there);
    let ask = async |abandoned| {
        let rules = Rules { ttl: TTL, abandoned, ..Rules::DEFAULT };
        engine.run(Attempt::new(key, MINE, rules), |_| async { executed("again") }).await
    };
    for _ in 0..2 {
        assert!(matches!(ask(Abandoned::Refuse).await, Err(RefusalReason::OutcomeUnknown)));
    }
    assert!(matches!(ask(Abandoned::Rerun).await, Ok(RunResult::Executed(_))));
    assert!(matches!(ask(Abandoned::Refuse).await, Ok(RunResult::Replayed(_))));
}

/// As the futures of `buffer_unordered`, while their consumer does something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_does_not_depend_on_one_that_is_not_polled() {
    let (server, here, there) = two_stores().await;
    let key = key();
    let claim = claim(&here, &key).await;
    let mut first = Box::pin(there.ended(&key));
    tokio::select! {
        () = &mut first => panic!("the claim has not ended"),
        () = server.wait_until("SELECT count(*) FROM idempotency WHERE awaited", "1") => {}
    }
    let waits = tokio::spawn({
        let there = there.clone();
        async move { there.ended(&key).await }
    });
    claim.complete(record("response"), TTL).await.unwrap();
    within("the second one", waits).await.unwrap();
    within("the first one", first).await;
}

/// A thousand duplicates of one request, in one process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_that_wait_for_a_key_one_polls_the_database() {
    const WAITERS: usize = 1000;
    let (server, here, _) = two_stores().await;
    let proxy = Proxy::to(server.port()).await;
    let there = PostgresStore::connect(&server.url_through(proxy.port())).await.unwrap();
    let key = key();
    let claim = claim(&here, &key).await;
    assert_eq!(state_of(&there, &key).await, "in flight");
    let before = proxy.round_trips();
    let mut waits = JoinSet::new();
    for _ in 0..WAITERS {
        let there = there.clone();
        waits.spawn(async move { there.ended(&key).await });
    }
    server.wait_until("SELECT count(*) FROM idempotency WHERE awaited", "1").await;
    // Time for some polls.
    sleep(Duration::from_millis(1500)).await;
    assert!(waits.try_join_next().is_none(), "a wait ended before its claim did");
    let rows_changed = "SELECT xmin FROM idempotency";
    let marked_by = server.sql(rows_changed);
    let late = tokio::spawn({
        let there = PostgresStore::connect(&format!("{}&application_name=late", server.url())).await.unwrap();
        async move { there.ended(&key).await }
    });
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'late' AND query LIKE '%lease_until%'";
    server.wait_until(asked, "1").await;
    assert_eq!(server.sql(rows_changed), marked_by, "another process finds it marked");
    claim.complete(record("response"), TTL).await.unwrap();
    let completed = Instant::now();
    waits.join_all().await;
    late.await.unwrap();
    assert!(completed.elapsed() < Duration::from_secs(2), "{:?}", completed.elapsed());
    let asked = proxy.round_trips() - before;
    assert!(asked < 60, "{asked} round trips for {WAITERS} waiters");
    assert_eq!(state_of(&there, &key).await, "completed: response");
}

/// The queue of notifications is full, or the role may not notify.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_that_fails_costs_neither_a_record_nor_a_release() {
    let (server, _, _) = two_stores().await;
    server.sql(
        "REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC; CREATE ROLE app LOGIN; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency TO app",
    );
    let connect = async || PostgresStore::connect(&server.url().replace("idem@", "app@")).await.unwrap();
    let (here, there) = (connect().await, connect().await);
    let (recorded, released) = (key(), key());
    let claims = (claim(&here, &recorded).await, claim(&here, &released).await);
    let mut waits = JoinSet::new();
    for key in [recorded, released] {
        let there = there.clone();
        waits.spawn(async move {
            there.ended(&key).await;
            state_of(&there, &key).await
        });
    }
    server.wait_until("SELECT count(*) FROM idempotency WHERE awaited", "2").await;
    claims.0.complete(record("response"), TTL).await.unwrap();
    claims.1.release().await.unwrap();
    assert_eq!(state_of(&here, &recorded).await, "completed: response");
    let mut found = waits.join_all().await;
    found.sort();
    assert_eq!(found, ["claimed", "completed: response"], "those who wait ask");
}

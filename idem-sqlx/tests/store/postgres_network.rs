//! PostgreSQL behind a network that loses, repeats or delays messages.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use idem_runtime::{Begin, BeginOptions, Claim, Idempotency, RunResult, StorageKey, Store, StoreError};
use idem_sqlx::{PostgresStore, Problem};
use idem_testkit::postgres::Postgres;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::wait::until;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::common::*;

/// A server, the network before it, a store behind that, and one that reaches the server directly.
pub(crate) struct Apart {
    pub(crate) server: Postgres,
    pub(crate) proxy: Proxy,
    pub(crate) store: PostgresStore,
    pub(crate) near: PostgresStore,
}

pub(crate) async fn apart() -> Apart {
    let server = Postgres::quick().await;
    let proxy = Proxy::to(server.port()).await;
    let near = PostgresStore::connect(&server.url()).await.unwrap();
    near.migrate().await.unwrap();
    let store = PostgresStore::builder()
        .timeout(Duration::from_secs(2))
        .max_connections(2)
        .connect(&server.url_through(proxy.port()))
        .await
        .unwrap();
    // Every statement is prepared on the connection, so that from now on a step is one round trip.
    let mut first = claim(&store, &key()).await;
    first.renew(LEASE).await.unwrap();
    first.complete(record("first"), TTL).await.unwrap();
    claim(&store, &key()).await.release().await.unwrap();
    Apart { server, proxy, store, near }
}

impl Apart {
    /// Does `step`, whose reply is lost; then the connection breaks.
    async fn reply_lost<T>(&self, step: impl Future<Output = T>) -> T {
        self.proxy.set(Direction::ToClient, Fault::Drop);
        let trouble = async {
            self.proxy.seen(Direction::ToClient).await;
            self.proxy.heal();
            self.proxy.cut();
        };
        tokio::join!(step, trouble).0
    }

    fn rows(&self) -> String {
        self.server.sql("SELECT count(*) FROM idempotency").trim().to_owned()
    }
}

#[tokio::test]
async fn a_begin_whose_reply_is_lost_claims_once() {
    let apart = apart().await;
    let key = key();
    let claim = apart.reply_lost(claim(&apart.store, &key)).await;
    assert_eq!(apart.rows(), "2", "the first record and this claim");
    assert_eq!(state_of(&apart.near, &key).await, "in flight");
    claim.complete(record("response"), TTL).await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "completed: response");
}

#[tokio::test]
async fn an_unconfirmed_claim_is_released_long_before_its_lease_expires() {
    let apart = apart().await;
    let key = key();
    apart.proxy.set(Direction::ToClient, Fault::Drop);
    let lost = apart.store.begin(&key, &MINE, &OPTIONS).await.unwrap_err();
    assert!(matches!(problem(&lost), Problem::TimedOut { .. } | Problem::Unreachable { .. }), "{lost:?}");
    assert_eq!(state_of(&apart.near, &key).await, "in flight", "the server granted the claim");
    apart.proxy.cut();
    apart.proxy.heal();
    claim_in_time(&apart.near, &key).await.complete(record("response"), TTL).await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "completed: response");
}

/// A refusal would say that another request has the key, and an endpoint may acknowledge an event because of it.
#[tokio::test]
async fn a_begin_whose_commit_is_slow_does_not_take_its_own_first_try_for_another_request() {
    let apart = apart().await;
    let key = key();
    apart.server.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON idempotency DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let refused = apart.store.begin(&key, &MINE, &OPTIONS).await;
    assert!(matches!(&refused, Err(lost) if matches!(problem(lost), Problem::TimedOut { .. })), "{}", shown(&refused));
    apart.server.sql("DROP TRIGGER slow ON idempotency");
    claim_in_time(&apart.near, &key).await;
}

#[tokio::test]
async fn an_unconfirmed_claim_is_released_after_no_connection_was_left() {
    let apart = apart().await;
    let key = key();
    apart.proxy.set(Direction::ToClient, Fault::Drop);
    let trouble = async {
        apart.proxy.seen(Direction::ToClient).await;
        apart.proxy.refuse();
    };
    // The last error says that nothing could be sent, but the first try was.
    let (lost, ()) = tokio::join!(apart.store.begin(&key, &MINE, &OPTIONS), trouble);
    let lost = lost.unwrap_err();
    assert!(matches!(problem(&lost), Problem::Unreachable { .. } | Problem::Broken(_)), "{lost:?}");
    assert_eq!(state_of(&apart.near, &key).await, "in flight", "the server granted the claim");
    apart.proxy.heal();
    claim_in_time(&apart.near, &key).await;
}

#[tokio::test]
async fn the_claim_of_a_dropped_begin_is_released_and_a_confirmed_one_is_not() {
    let apart = apart().await;
    let (dropped, confirmed) = (key(), key());
    let held = claim(&apart.store, &confirmed).await;
    apart.proxy.set(Direction::ToClient, Fault::Hold);
    tokio::select! {
        _ = apart.store.begin(&dropped, &MINE, &OPTIONS) => panic!("its reply is held"),
        () = apart.proxy.seen(Direction::ToClient) => {}
    }
    assert_eq!(state_of(&apart.near, &dropped).await, "in flight", "the server granted the claim");
    apart.proxy.heal();
    claim_in_time(&apart.near, &dropped).await;
    assert_eq!(state_of(&apart.near, &confirmed).await, "in flight");
    held.complete(record("response"), TTL).await.unwrap();
}

#[tokio::test]
async fn a_drain_waits_until_an_unconfirmed_claim_is_released() {
    let apart = apart().await;
    let idempotency = Idempotency::new(apart.store.clone());
    let key = key();
    idempotency.drain().await;
    apart.proxy.set(Direction::ToClient, Fault::Hold);
    tokio::select! {
        _ = apart.store.begin(&key, &MINE, &OPTIONS) => panic!("its reply is held"),
        () = apart.proxy.seen(Direction::ToClient) => {}
    }
    assert!(idempotency.drain_until(async {}).await.is_ok(), "no handler runs, so none is stopped");
    let drained = async {
        idempotency.drain().await;
        state_of(&apart.near, &key).await
    };
    let healed = async {
        assert_eq!(state_of(&apart.near, &key).await, "in flight");
        apart.proxy.heal();
    };
    let (found, ()) = tokio::join!(drained, healed);
    assert_eq!(found, "claimed", "the key was free");
}

#[tokio::test]
async fn a_new_owner_whose_begin_was_repeated_keeps_what_it_takes_over() {
    let apart = apart().await;
    let key = key();
    drop(claim_for(&apart.near, &key, SHORT, TTL).await);
    drop(abandoned(&apart.near, &key).await);
    let begun = apart.reply_lost(apart.store.begin(&key, &MINE, &OPTIONS)).await;
    let Ok(Begin::Abandoned(mut new_owner)) = begun else { panic!("{}", shown(&begun)) };
    new_owner.renew(LEASE).await.unwrap();
    // Time for a release, which would be wrong.
    tokio::time::sleep(Duration::from_millis(500)).await;
    new_owner.complete(record("new owner"), TTL).await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "completed: new owner");
}

/// Returns the port of a network that keeps the first message with this key until it is told to go on, and the rest of its connection.
async fn holding_the_first(key: StorageKey, server: u16) -> (u16, Arc<Notify>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go_on, held) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let released = Arc::clone(&go_on);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) =
                TcpStream::connect(("127.0.0.1", server)).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            let (released, held) = (Arc::clone(&released), Arc::clone(&held));
            tokio::spawn(async move {
                let mut buffer = [0; 8192];
                while let Ok(size @ 1..) = from_client.read(&mut buffer).await {
                    let has_key = buffer[..size].windows(32).any(|window| window == key.as_bytes());
                    if has_key && !held.swap(true, Ordering::SeqCst) {
                        released.notified().await;
                    }
                    to_server.write_all(&buffer[..size]).await.unwrap();
                }
            });
        }
    });
    (port, go_on)
}

pub(crate) async fn behind(server: &Postgres, port: u16) -> PostgresStore {
    let store = PostgresStore::builder().timeout(Duration::from_secs(1)).max_connections(2);
    store.connect(&server.url_through(port)).await.unwrap()
}

#[tokio::test]
async fn a_claim_whose_begin_was_repeated_leaves_nothing_if_the_first_try_arrives_after_its_release() {
    let Apart { server, near, .. } = apart().await;
    let key = key();
    let (port, go_on) = holding_the_first(key, server.port()).await;
    let store = behind(&server, port).await;
    let claim = claim_for(&store, &key, Duration::from_secs(5), TTL).await;
    claim.release().await.unwrap();
    assert!(store.drained().now_or_never().is_none(), "the first try may still arrive");
    go_on.notify_one();
    let started = Instant::now();
    store.drained().await;
    assert!(started.elapsed() < Duration::from_secs(4), "the claim was found and released");
    assert_eq!(state_of(&near, &key).await, "claimed", "it was free");
}

#[tokio::test]
async fn a_repeated_begin_that_was_refused_is_released_if_its_first_try_arrives_late() {
    let Apart { server, near, .. } = apart().await;
    let key = key();
    let others = claim(&near, &key).await;
    let (port, go_on) = holding_the_first(key, server.port()).await;
    let store = behind(&server, port).await;
    let options = BeginOptions::new(Duration::from_secs(5), TTL);
    let begun = store.begin(&key, &MINE, &options).await;
    assert!(matches!(begun, Ok(Begin::InFlight(_))), "{}", shown(&begun));
    assert!(store.drained().now_or_never().is_none(), "the first try may still arrive");
    others.release().await.unwrap();
    go_on.notify_one();
    let started = Instant::now();
    store.drained().await;
    assert!(started.elapsed() < Duration::from_secs(4), "the claim was found and released");
    assert_eq!(state_of(&near, &key).await, "claimed", "it was free");
}

#[tokio::test]
async fn a_release_is_repeated_without_an_error_if_another_owner_has_claimed_since() {
    let apart = apart().await;
    let key = key();
    let first = claim(&apart.near, &key).await;
    let copy = first.try_clone().unwrap();
    first.release().await.unwrap();
    let others = claim(&apart.near, &key).await;
    copy.release().await.unwrap();
    others.complete(record("response"), TTL).await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "completed: response");
}

#[tokio::test]
async fn a_complete_whose_reply_is_lost_has_completed_and_its_ttl_counts_from_the_first_try() {
    let apart = apart().await;
    let key = key();
    let claim = claim(&apart.store, &key).await;
    let before = apart.server.sql("SELECT clock_timestamp()");
    apart.reply_lost(claim.complete(record("response"), TTL)).await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "completed: response");
    let within = format!(
        "SELECT expires_at - interval '1 hour' BETWEEN '{}' AND clock_timestamp() FROM idempotency WHERE key = '\\x{}'",
        before.trim(),
        hex(&key)
    );
    assert_eq!(apart.server.sql(&within).trim(), "t");
}

#[tokio::test]
async fn a_completion_repeated_by_its_owner_changes_nothing() {
    let apart = apart().await;
    let key = key();
    let claim = claim(&apart.near, &key).await;
    let copy = claim.try_clone().unwrap();
    claim.complete(record("response"), TTL).await.unwrap();
    let row = format!("SELECT md5(record), expires_at FROM idempotency WHERE key = '\\x{}'", hex(&key));
    let before = apart.server.sql(&row);
    copy.complete(record("another response"), 2 * TTL).await.unwrap();
    assert_eq!(apart.server.sql(&row), before);
}

#[tokio::test]
async fn a_release_whose_reply_is_lost_has_released() {
    let apart = apart().await;
    let key = key();
    let claim = claim(&apart.store, &key).await;
    let copy = claim.try_clone().unwrap();
    apart.reply_lost(claim.release()).await.unwrap();
    copy.release().await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "claimed");
}

#[tokio::test]
async fn a_renewal_whose_reply_is_lost_has_renewed() {
    let apart = apart().await;
    let key = key();
    let mut claim = claim(&apart.store, &key).await;
    apart.reply_lost(claim.renew(2 * LEASE)).await.unwrap();
    let longer =
        format!("SELECT lease_until > now() + interval '45 s' FROM idempotency WHERE key = '\\x{}'", hex(&key));
    assert_eq!(apart.server.sql(&longer).trim(), "t");
    claim.complete(record("response"), TTL).await.unwrap();
}

#[tokio::test]
async fn a_takeover_whose_reply_is_lost_has_taken_over() {
    let apart = apart().await;
    // The first one prepares the statement, so that of the second one it is the reply that is lost.
    for is_lost in [false, true] {
        let key = key();
        let mut previous = claim_for(&apart.near, &key, SHORT, TTL).await;
        let mut new_owner = abandoned(&apart.store, &key).await;
        if is_lost {
            apart.reply_lost(new_owner.renew(LEASE)).await.unwrap();
        } else {
            new_owner.renew(LEASE).await.unwrap();
        }
        assert!(matches!(previous.renew(LEASE).await, Err(StoreError::Lost)));
        new_owner.complete(record("new owner"), TTL).await.unwrap();
        assert_eq!(state_of(&apart.near, &key).await, "completed: new owner");
    }
}

#[tokio::test]
async fn a_revocation_whose_reply_is_lost_has_revoked() {
    let apart = apart().await;
    // As above.
    for is_lost in [false, true] {
        let key = key();
        let mut owner = claim(&apart.near, &key).await;
        let revokes = apart.store.revoke(&key);
        assert!(if is_lost { apart.reply_lost(revokes).await } else { revokes.await }.unwrap());
        assert!(matches!(owner.renew(LEASE).await, Err(StoreError::Lost)));
    }
}

#[tokio::test]
async fn without_a_network_a_step_is_an_error_in_time_and_the_copy_completes_afterwards() {
    let apart = apart().await;
    let key = key();
    let claim = claim(&apart.store, &key).await;
    let copy = claim.try_clone().unwrap();
    apart.proxy.black_hole();
    let asked = Instant::now();
    let gone = claim.complete(record("response"), TTL).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert!(matches!(problem(&gone), Problem::TimedOut { .. } | Problem::Unreachable { .. }), "{gone:?}");
    assert_eq!(state_of(&apart.near, &key).await, "in flight");
    apart.proxy.heal();
    copy.complete(record("response"), TTL).await.unwrap();
    assert_eq!(state_of(&apart.near, &key).await, "completed: response");
}

#[tokio::test]
async fn an_engine_that_loses_the_reply_of_each_step_runs_the_handler_once_and_replays_its_response() {
    let apart = apart().await;
    let engine = Idempotency::new(apart.store.clone());
    let (key, runs) = (key(), Arc::new(AtomicUsize::new(0)));
    let begun = Arc::new(tokio::sync::Notify::new());
    let go_on = Arc::new(tokio::sync::Notify::new());
    let handler = {
        let (runs, begun, go_on) = (Arc::clone(&runs), Arc::clone(&begun), Arc::clone(&go_on));
        move |_| async move {
            runs.fetch_add(1, Ordering::SeqCst);
            begun.notify_one();
            go_on.notified().await;
            executed("the response")
        }
    };
    let request = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run(attempt(key), handler).await }
    });
    // The replies to `begin` and to `complete` are lost.
    apart.reply_lost(begun.notified()).await;
    apart.reply_lost(async { go_on.notify_one() }).await;
    assert!(matches!(request.await.unwrap(), Ok(RunResult::Executed(response)) if response == "the response"));
    let again = Idempotency::new(apart.near.clone()).run(attempt(key), |_| async { executed("another") }).await;
    assert!(matches!(again, Ok(RunResult::Replayed(replay)) if replay.content() == "the response"));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// What may have been counted is not counted again.
#[tokio::test]
async fn a_count_whose_reply_is_lost_is_not_repeated() {
    let Apart { server, proxy, near, .. } = apart().await;
    let url = server.url_through(proxy.port());
    let counts = PostgresStore::builder().count_replays(true).max_connections(2).connect(&url).await.unwrap();
    let key = key();
    leave_record(&near, &key, "response").await;
    let mut gate = PgConnection::connect(&server.url()).await.unwrap();
    let mut locked = gate.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM idempotency FOR UPDATE").execute(&mut *locked).await.unwrap();
    assert_eq!(state_of(&counts, &key).await, "completed: response");
    server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", "1").await;
    proxy.set(Direction::ToClient, Fault::Drop);
    locked.rollback().await.unwrap();
    proxy.seen(Direction::ToClient).await;
    proxy.heal();
    proxy.cut();
    // One task counts, so this replay comes after the first one.
    assert_eq!(state_of(&counts, &key).await, "completed: response");
    let replays = async || counts.inspect(&key).await.unwrap().unwrap().replays.unwrap();
    until("the second replay is counted", async || replays().await >= 2).await;
    assert_eq!(replays().await, 2);
}

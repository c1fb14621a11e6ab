//! PostgreSQL behind a network that loses replies, and a server that is killed or stopped.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use idem_runtime::{Begin, BeginOptions, Claim, Idempotency, RefusalReason, RunResult, StorageKey, Store, StoreError};
use idem_sqlx::{PostgresStore, Problem};
use idem_testkit::postgres::Postgres;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::wait::until;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::common::*;

/// A server, the network before it, a store behind that, and one that reaches the server directly.
struct Apart {
    server: Postgres,
    proxy: Proxy,
    store: PostgresStore,
    near: PostgresStore,
}

async fn apart() -> Apart {
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

/// Returns the port of a server that does what it is told to, and then, once this is set, says that it fails, with this severity and code.
async fn failing(server: u16, severity: &str, code: &str) -> (u16, Arc<AtomicBool>) {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0Mit fails\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    let message: Arc<[u8]> = [b"E", &length[..], fields.as_bytes()].concat().into();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fails = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&fails);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) =
                TcpStream::connect(("127.0.0.1", server)).await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let (set, message) = (Arc::clone(&set), Arc::clone(&message));
            tokio::spawn(async move {
                let mut buffer = [0; 8192];
                while let Ok(size @ 1..) = from_server.read(&mut buffer).await {
                    if set.swap(false, Ordering::SeqCst) {
                        return to_client.write_all(&message).await.unwrap();
                    }
                    to_client.write_all(&buffer[..size]).await.unwrap();
                }
            });
        }
    });
    (port, fails)
}

/// A server whose disk is full may crash when it has written a commit and needs the next file for its log; a proxy may lose its server.
#[tokio::test]
async fn a_server_that_fails_after_a_commit_leaves_no_claim_without_an_owner() {
    let Apart { server, near, .. } = apart().await;
    for (severity, code) in [("PANIC", "53100"), ("PANIC", "58030"), ("FATAL", "58000"), ("FATAL", "XX000")] {
        let (port, fails) = failing(server.port(), severity, code).await;
        let store = behind(&server, port).await;
        // The statements are prepared now.
        claim(&store, &key()).await.complete(record("first"), TTL).await.unwrap();
        let key = key();
        fails.store(true, Ordering::SeqCst);
        let claimed = claim(&store, &key).await;
        assert!(!fails.load(Ordering::SeqCst), "it has failed");
        assert_eq!(state_of(&near, &key).await, "in flight");
        claimed.complete(record("response"), TTL).await.unwrap();
        assert_eq!(state_of(&near, &key).await, "completed: response");
    }
}

/// As a server does that shuts down, and a proxy that has lost its server.
#[tokio::test]
async fn a_connection_that_is_ended_while_it_is_made_is_made_again_or_to_another_host() {
    let server = Postgres::quick().await;
    PostgresStore::connect(&server.url()).await.unwrap().migrate().await.unwrap();
    for code in ["57P01", "08P01"] {
        let (port, fails) = failing(server.port(), "FATAL", code).await;
        fails.store(true, Ordering::SeqCst);
        let store = PostgresStore::from_options(server.url_through(port).parse().unwrap());
        assert_eq!(state_of(&store, &key()).await, "claimed", "{code}");
        assert!(!fails.load(Ordering::SeqCst), "it has failed");
        fails.store(true, Ordering::SeqCst);
        let hosts = format!("postgres://idem@127.0.0.1:{port},127.0.0.1:{}/postgres?sslmode=disable", server.port());
        let store = PostgresStore::connect(&hosts).await.unwrap();
        assert!(!fails.load(Ordering::SeqCst), "it has failed");
        assert_eq!(state_of(&store, &key()).await, "claimed", "{code}");
    }
}

async fn behind(server: &Postgres, port: u16) -> PostgresStore {
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
async fn a_store_leaves_a_primary_that_was_demoted_for_the_one_that_its_address_leads_to() {
    let apart = apart().await;
    let successor = Postgres::quick().await;
    PostgresStore::connect(&successor.url()).await.unwrap().migrate().await.unwrap();
    // Connections stay, as with a standby that is demoted gracefully.
    apart.server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    apart.server.sql("SELECT pg_reload_conf()");
    apart.server.wait_until("SHOW default_transaction_read_only", "on").await;
    let refused = apart.store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
    assert!(matches!(problem(&refused), Problem::ReadOnly), "{refused:?}");
    let key = key();
    let before = apart.proxy.round_trips();
    let begins = tokio::spawn({
        let store = apart.store.clone();
        async move { state_of(&store, &key).await }
    });
    until("the old primary has refused it", async || apart.proxy.round_trips() > before).await;
    apart.proxy.redirect(successor.port());
    assert_eq!(begins.await.unwrap(), "claimed", "it was under way when the address changed");
    for _ in 0..4 {
        leave_record(&apart.store, &crate::common::key(), "response").await;
    }
    assert_eq!(successor.sql("SELECT count(*) FROM idempotency").trim(), "5");
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

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_at_each_step() {
    // What the database's own default would lose, the store's connections must not. The system survives, so its page cache
    // is as good as a disk.
    let mut server = Postgres::with(&["fsync=off", "synchronous_commit=off", "wal_writer_delay=10s"]).await;
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let (claimed, renewed, completed, released) = (key(), key(), key(), key());

    let claim_1 = claim(&store, &claimed).await;
    server.kill();
    server.restart().await;
    assert_eq!(state_of(&store, &claimed).await, "in flight", "a claim was acknowledged");

    let mut claim_2 = claim_for(&store, &renewed, SHORT, TTL).await;
    claim_2.renew(LEASE).await.unwrap();
    server.kill();
    server.restart().await;
    assert_eq!(state_of(&store, &renewed).await, "in flight", "a claim was acknowledged, and so was its renewal");

    leave_record(&store, &completed, "response").await;
    server.kill();
    server.restart().await;
    assert_eq!(state_of(&store, &completed).await, "completed: response", "a record was acknowledged");

    claim(&store, &released).await.release().await.unwrap();
    server.kill();
    server.restart().await;
    assert_eq!(state_of(&store, &released).await, "claimed", "a release was acknowledged");

    // The owners are still there and go on.
    claim_1.complete(record("one"), TTL).await.unwrap();
    claim_2.complete(record("two"), TTL).await.unwrap();
    assert_eq!(state_of(&store, &claimed).await, "completed: one");
    assert_eq!(state_of(&store, &renewed).await, "completed: two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_load_has_all_that_was_acknowledged_and_no_second_claim() {
    let mut server = Postgres::with(&["fsync=off", "synchronous_commit=off", "wal_writer_delay=10s"]).await;
    let store = PostgresStore::builder().timeout(Duration::from_secs(1)).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for client in 0..6 {
        let (store, acknowledged) = (store.clone(), Arc::clone(&acknowledged));
        clients.spawn(async move {
            let (mut claims, mut records) = (Vec::new(), Vec::new());
            for number in 0.. {
                let key = numbered(1_000_000 * (client + 1) + number);
                let Ok(Begin::Claimed(claim)) = store.begin(&key, &MINE, &OPTIONS).await else {
                    break;
                };
                claims.push(key);
                if number % 2 == 0 {
                    if claim.complete(record("response"), TTL).await.is_err() {
                        break;
                    }
                    records.push(key);
                }
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            (claims, records)
        });
    }
    while acknowledged.load(Ordering::SeqCst) < 300 {
        tokio::task::yield_now().await;
    }
    server.kill();
    // Before it comes back: no retry gets through.
    let clients = clients.join_all().await;
    server.restart().await;
    for (claims, records) in clients {
        for key in records {
            assert_eq!(state_of(&store, &key).await, "completed: response");
        }
        for key in claims {
            let state = state_of(&store, &key).await;
            assert!(
                ["in flight", "completed: response"].contains(&&*state),
                "a claim was acknowledged, but it is {state}"
            );
        }
    }
}

#[tokio::test]
async fn a_stalled_server_is_an_error_in_time_and_steps_succeed_when_it_resumes() {
    let server = Postgres::quick().await;
    let store = PostgresStore::builder().timeout(Duration::from_millis(600)).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let claimed = key();
    let mut claim = claim(&store, &claimed).await;
    let engine = Idempotency::new(store.clone());
    server.stall();
    let asked = Instant::now();
    let refused = engine.run(attempt(key()), |_| async { panic!("the handler runs without a claim") }).await;
    assert!(matches!(refused, Err::<RunResult<String>, _>(RefusalReason::StoreUnavailable(_))), "{refused:?}");
    assert!(claim.renew(LEASE).await.is_err());
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    server.resume();
    claim.renew(LEASE).await.unwrap();
    claim.complete(record("response"), TTL).await.unwrap();
    let ran = engine.run(attempt(key()), |_| async { executed("response") }).await;
    assert!(matches!(ran, Ok(RunResult::Executed(_))), "{ran:?}");
}

#[tokio::test]
async fn a_store_finds_the_server_again_after_a_restart_with_all_its_connections_broken() {
    let mut server = Postgres::quick().await;
    let store = PostgresStore::builder().max_connections(40).connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let begins = async || {
        let mut begins = JoinSet::new();
        for _ in 0..40 {
            let store = store.clone();
            begins.spawn(async move { state_of(&store, &key()).await });
        }
        begins.join_all().await
    };
    assert_eq!(begins().await, vec!["claimed"; 40]);
    server.restart().await;
    // One step has no time to try each of them.
    assert_eq!(state_of(&store, &key()).await, "claimed");
    assert_eq!(begins().await, vec!["claimed"; 40]);
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

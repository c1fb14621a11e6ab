//! A PostgreSQL server that fails, is killed, stalls or is demoted.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use idem_runtime::{Begin, Claim, Idempotency, RefusalReason, RunResult, Store};
use idem_sqlx::{PostgresStore, Problem};
use idem_testkit::postgres::Postgres;
use idem_testkit::wait::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::*;
use crate::postgres_network::{Apart, apart, behind};

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

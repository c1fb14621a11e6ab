//! URLs with several hosts: each connection goes to one that takes writes.
#![cfg(feature = "postgres")]

use std::fs::{Permissions, set_permissions, write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use idem_runtime::{Claim, Store};
use idem_sqlx::{ConnectError, MigrateError, PostgresStore, Problem};
use idem_testkit::postgres::Postgres;
use idem_testkit::process::free_port;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::common::*;

const LISTENS: &str = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
const PROMOTED: &str = "SELECT pg_promote()";

/// The database on several ports of this machine.
fn url(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://idem:secret@{}/postgres?sslmode=disable", hosts.join(","))
}

/// A primary with the table, and a standby that has confirmed whatever the primary acknowledges.
async fn primary_and_standby() -> (Postgres, Postgres) {
    let primary = Postgres::quick().await;
    let standby = Postgres::standby_of(&primary).await;
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.sql("SELECT pg_reload_conf()");
    primary.wait_until("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", "1").await;
    PostgresStore::connect(&primary.url()).await.unwrap().migrate().await.unwrap();
    (primary, standby)
}

/// Makes a server read-only, and leaves its connections.
async fn demote(server: &Postgres) {
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    server.wait_until("SHOW default_transaction_read_only", "on").await;
}

#[tokio::test]
async fn a_host_that_is_closed_is_passed_over() {
    let server = Postgres::quick().await;
    let closed = free_port();
    let store = PostgresStore::connect(&url(&[closed, server.port()])).await.unwrap();
    store.migrate().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    // Alone it is an error, of no connection that broke.
    let pool = PgPool::connect_lazy(&url(&[closed])).unwrap();
    let store = PostgresStore::builder().timeout(Duration::from_millis(300)).with_pool(pool).unwrap();
    let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
    assert!(matches!(problem(&refused), Problem::Unreachable { source: Some(_), .. }), "{refused:?}");
    assert!(matches!(store.migrate().await, Err(MigrateError::Database(_))));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_passed_over_and_ports_may_follow_in_their_order() {
    let server = Postgres::quick().await;
    for (hosts, ports) in [
        (format!("no-such-host.invalid,127.0.0.1:{}", server.port()), String::new()),
        ("no-such-host.invalid,127.0.0.1".to_owned(), format!("&port=5432,{}", server.port())),
        (String::new(), format!("&host=no-such-host.invalid,127.0.0.1&port={}", server.port())),
    ] {
        let user = if hosts.is_empty() { "" } else { "idem@" };
        let url = format!("postgres://{user}{hosts}/postgres?sslmode=disable&user=idem{ports}");
        let store = PostgresStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        assert_eq!(state_of(&store, &key()).await, "claimed", "{url}");
    }
}

#[tokio::test]
async fn a_standby_is_passed_over_by_steps_and_by_what_listens() {
    let (primary, standby) = primary_and_standby().await;
    let hosts = url(&[standby.port(), primary.port()]);
    for attributes in
        ["", "&target_session_attrs=read-write", "&target_session_attrs=primary", "&target_session_attrs=any"]
    {
        let store = PostgresStore::connect(&format!("{hosts}{attributes}")).await.unwrap();
        store.migrate().await.unwrap();
        let key = key();
        let claim = claim(&store, &key).await;
        let (_, completed) = tokio::join!(store.ended(&key), async {
            primary.wait_until(LISTENS, "1").await;
            claim.complete(record("response"), TTL).await
        });
        completed.unwrap();
        primary.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_finds_the_standby_that_was_promoted_and_loses_nothing_if_it_is_synchronous() {
    let (mut primary, standby) = primary_and_standby().await;
    // Promoting it may take a while.
    let builder = PostgresStore::builder().timeout(Duration::from_secs(10));
    let store = builder.connect(&url(&[primary.port(), standby.port()])).await.unwrap();
    let (recorded, claimed) = (key(), key());
    leave_record(&store, &recorded, "response").await;
    let mut before = claim(&store, &claimed).await;
    primary.kill();
    // It is under way while no server takes writes.
    let begins = tokio::spawn({
        let store = store.clone();
        async move { state_of(&store, &key()).await }
    });
    standby.sql(PROMOTED);
    assert_eq!(begins.await.unwrap(), "claimed");
    assert_eq!(state_of(&store, &recorded).await, "completed: response");
    before.renew(LEASE).await.unwrap();
    let (_, completed) = tokio::join!(store.ended(&claimed), async {
        standby.wait_until(LISTENS, "1").await;
        before.complete(record("late"), TTL).await
    });
    completed.unwrap();
    assert_eq!(state_of(&store, &claimed).await, "completed: late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_on_a_stalled_primary_does_not_keep_its_connection() {
    let (primary, standby) = primary_and_standby().await;
    let builder = PostgresStore::builder().max_connections(1).timeout(Duration::from_secs(2));
    let store = builder.connect(&url(&[primary.port(), standby.port()])).await.unwrap();
    let recorded = key();
    leave_record(&store, &recorded, "response").await;
    primary.stall();
    let state = state_of(&store, &key()).await;
    assert!(state.starts_with("unavailable"), "{state}");
    standby.sql(PROMOTED);
    let mut tries = 0..10;
    while state_of(&store, &recorded).await != "completed: response" {
        assert!(tries.next().is_some(), "the store does not find the new primary");
    }
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

#[tokio::test]
async fn a_host_that_became_read_only_is_left_for_another_one() {
    let (first, second) = (Postgres::quick().await, Postgres::quick().await);
    for server in [&first, &second] {
        PostgresStore::connect(&server.url()).await.unwrap().migrate().await.unwrap();
    }
    let store = PostgresStore::connect(&url(&[first.port(), second.port()])).await.unwrap();
    leave_record(&store, &key(), "response").await;
    demote(&first).await;
    leave_record(&store, &key(), "response").await;
    for server in [&first, &second] {
        assert_eq!(server.sql("SELECT count(*) FROM idempotency").trim(), "1");
    }
}

/// It takes connections, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_host_costs_a_part_of_the_time_and_once() {
    let server = Postgres::quick().await;
    PostgresStore::connect(&server.url()).await.unwrap().migrate().await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = url(&[silent.local_addr().unwrap().port(), server.port()]);
    let store = PostgresStore::builder().timeout(Duration::from_secs(2)).connect(&hosts).await.unwrap();
    let mut steps = JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        steps.spawn(async move { state_of(&store, &key()).await });
    }
    assert_eq!(steps.join_all().await, ["claimed"; 20]);
    silent.set_nonblocking(true).unwrap();
    assert_eq!(std::iter::from_fn(|| silent.accept().ok()).count(), 1);
}

#[tokio::test]
async fn the_last_host_has_all_the_time_that_is_left() {
    let server = Postgres::quick().await;
    let proxy = Proxy::to(server.port()).await;
    // More than one reply comes before the connection can be used.
    proxy.set(Direction::ToClient, Fault::Delay(Duration::from_secs(1)));
    let builder = PostgresStore::builder().timeout(Duration::from_secs(5));
    builder.connect(&url(&[free_port(), proxy.port()])).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_database_are_reported_and_not_passed_over() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    write(rules.path(), "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n").unwrap();
    // The server runs as another user.
    set_permissions(rules.path(), Permissions::from_mode(0o644)).unwrap();
    let first = Postgres::with(&["fsync=off", &format!("hba_file={}", rules.path().display())]).await;
    let second = Postgres::quick().await;
    for server in [&first, &second] {
        server.sql("CREATE ROLE app LOGIN PASSWORD 'right'");
    }
    second.sql("CREATE DATABASE orders");
    let hosts = url(&[first.port(), second.port()]);
    for (url, why) in [
        (hosts.replace("idem:", "app:"), "password authentication failed"),
        (hosts.replace("/postgres", "/orders"), "database \"orders\" does not exist"),
    ] {
        let refused = PostgresStore::connect(&url).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Connection(_)), "{refused:?}");
        assert!(refused.to_string().contains(&format!("127.0.0.1:{}: {why}", first.port())), "{refused}");
        assert!(!format!("{refused} {refused:?}").contains("secret"), "{refused:?}");
    }
}

#[tokio::test]
async fn when_no_host_takes_writes_the_error_says_of_each_why() {
    let (primary, standby) = primary_and_standby().await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (closed, silent) = (free_port(), silent.local_addr().unwrap().port());
    let hosts = url(&[closed, silent, standby.port(), primary.port()]);
    let store = PostgresStore::connect(&hosts).await.unwrap();
    assert!(!format!("{store:?}").contains("secret"), "{store:?}");
    demote(&primary).await;
    let refused = store.begin(&key(), &MINE, &OPTIONS).await.unwrap_err();
    let away = problem(&refused);
    assert!(matches!(away, Problem::Unreachable { .. } | Problem::ReadOnly), "{refused:?}");
    drop(store);
    let refused = PostgresStore::connect(&hosts).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Connection(_)), "{refused:?}");
    let said = format!("{refused} {refused:?}");
    for (port, why) in [
        (closed, "Connection refused"),
        (silent, "no reply in time"),
        (standby.port(), "it is a standby, or read-only"),
        (primary.port(), "it is a standby, or read-only"),
    ] {
        assert!(said.contains(&format!("127.0.0.1:{port}: {why}")), "{port} {why}: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_url_with_a_mistake_in_its_hosts_is_refused_with_what_to_write() {
    for (url, advice) in [
        ("postgres://idem:secret@a.example,,b.example/shop", "empty host among several"),
        ("postgres://idem:secret@a.example,:5433/shop", "empty host among several"),
        ("postgres:///shop?host=a.example,", "empty host among several"),
        ("postgres://idem:secret@a.example,b.example/shop?port=1,2,3", "one port for all hosts, or one for each"),
        ("postgres://idem:secret@a.example/shop?port=1,2", "one port for all hosts, or one for each"),
        (
            "postgres://idem:secret@a.example,b.example,c.example/shop?port=1,2",
            "one port for all hosts, or one for each",
        ),
        ("postgres://idem:secret@a.example,b.example/shop?hostaddr=192.0.2.1", "`hostaddr`"),
        ("postgres://idem:secret@a.example,b.example/shop?target_session_attrs=standby", "`read-write`"),
        ("postgres://idem:secret@a.example/shop?target_session_attrs=prefer-standby", "`read-write`"),
        ("postgres://idem:secret@a.example,b.example/shop?target_session_attrs=", "`read-write`"),
        ("postgres://idem:secret@a.example:x,b.example/shop", "not understood"),
    ] {
        let refused = PostgresStore::connect(url).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Setting(_) | ConnectError::Url(_)), "{url}: {refused:?}");
        assert!(refused.to_string().contains(advice), "{url}: {refused}");
        assert!(!format!("{refused} {refused:?}").contains("secret"), "{refused:?}");
    }
}

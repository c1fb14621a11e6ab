//! How many processes of the server a store holds, and for how long.
#![cfg(feature = "postgres")]

use std::time::{Duration, Instant};

use idem_runtime::{Store, StoreError};
use idem_sqlx::{ConnectError, PostgresStore, PostgresStoreBuilder, Problem};
use idem_testkit::postgres::Postgres;
use idem_testkit::proxy::Proxy;
use idem_testkit::wait::until;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor, PgPool};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::*;

const POOL: usize = 3;
const TIMEOUT: Duration = Duration::from_millis(400);

fn small() -> PostgresStoreBuilder {
    PostgresStore::builder().max_connections(POOL)
}

async fn with_a_store(builder: PostgresStoreBuilder) -> (Postgres, PostgresStore) {
    let server = Postgres::quick().await;
    let store = builder.connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    (server, store)
}

/// How many processes the server has for clients, other than the one that asks.
fn processes(server: &Postgres) -> usize {
    let count =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    server.sql(count).trim().parse().unwrap()
}

/// Returns the most processes that the server had while the steps were under way.
async fn most_processes(server: &Postgres, mut steps: JoinSet<()>) -> usize {
    let mut most = 0;
    while !steps.is_empty() {
        most = most.max(processes(server));
        tokio::task::yield_now().await;
        while steps.try_join_next().is_some() {}
    }
    most
}

/// This many requests at once, all of which are refused.
fn refused_begins(store: &PostgresStore, begins: usize) -> JoinSet<()> {
    let mut steps = JoinSet::new();
    for _ in 0..begins {
        let store = store.clone();
        steps.spawn(async move { assert!(store.begin(&key(), &MINE, &OPTIONS).await.is_err()) });
    }
    steps
}

fn reload(server: &Postgres, change: &str) {
    server.sql(change);
    server.sql("SELECT pg_reload_conf()");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_away_costs_the_server_no_more_processes_than_the_store_has_connections() {
    let (server, store) = with_a_store(small().timeout(TIMEOUT)).await;
    let recorded = key();
    leave_record(&store, &recorded, "response").await;
    reload(&server, "ALTER SYSTEM SET synchronous_standby_names = 'away'");
    server.wait_until("SHOW synchronous_standby_names", "away").await;
    let most = most_processes(&server, refused_begins(&store, 40)).await;
    assert!(most <= POOL + 1, "{most} processes, one of which cancels");
    // A retry still gets its replay: those who wait for the standby do not keep the connections.
    let asked = Instant::now();
    while state_of(&store, &recorded).await != "completed: response" {
        assert!(asked.elapsed() < Duration::from_secs(20), "no replay while a standby is away");
    }
    reload(&server, "ALTER SYSTEM RESET synchronous_standby_names");
    let asked = Instant::now();
    while state_of(&store, &key()).await != "claimed" {
        assert!(asked.elapsed() < Duration::from_secs(20), "no claim although the standby is not needed any more");
    }
}

/// Such a server does not say what its processes run, so no statement is cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_away_costs_no_more_if_the_server_does_not_track_activities() {
    let (server, store) = with_a_store(small().timeout(TIMEOUT)).await;
    reload(&server, "ALTER SYSTEM SET track_activities = off");
    server.wait_until("SHOW track_activities", "off").await;
    reload(&server, "ALTER SYSTEM SET synchronous_standby_names = 'away'");
    server.wait_until("SHOW synchronous_standby_names", "away").await;
    // One that asks, and one that has asked and is about to end, do not wait for the standby. Before version 14 such a server does not say
    // either what its processes wait for, so all of them count.
    let tells_waits = server.sql("SELECT current_setting('server_version_num')::int >= 140000").trim() == "t";
    let waiting =
        || server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").trim().parse().unwrap();
    // So long that one more connection would be allowed if the places that are kept did not move.
    let (start, mut most) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(6) {
        let mut begins = refused_begins(&store, 40);
        while !begins.is_empty() {
            most = most.max(if tells_waits { waiting() } else { processes(&server) });
            tokio::task::yield_now().await;
            while begins.try_join_next().is_some() {}
        }
    }
    let others = if tells_waits { 0 } else { 2 };
    assert!((POOL..=POOL + others).contains(&most), "{most} processes, {others} of which may not wait for the standby");
    reload(&server, "ALTER SYSTEM RESET synchronous_standby_names");
    let asked = Instant::now();
    while state_of(&store, &key()).await != "claimed" {
        assert!(asked.elapsed() < Duration::from_secs(20), "no claim although the standby is not needed any more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_locked_costs_the_server_no_more_processes_than_the_store_has_connections() {
    let (server, store) = with_a_store(small().timeout(TIMEOUT)).await;
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    transaction.execute("LOCK TABLE idempotency").await.unwrap();
    let most = most_processes(&server, refused_begins(&store, 40)).await;
    assert!(most <= 1 + POOL + 1, "{most} processes, one of which holds the lock and one cancels");
    transaction.rollback().await.unwrap();
    until("a claim is made", async || state_of(&store, &key()).await == "claimed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_hang_up_cost_the_server_no_more_processes_than_the_store_has_connections() {
    let (server, store) = with_a_store(small().timeout(Duration::from_secs(8))).await;
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    transaction.execute("LOCK TABLE idempotency").await.unwrap();
    let mut steps = JoinSet::new();
    for _ in 0..40 {
        let store = store.clone();
        steps.spawn(async move {
            let begin = async { store.begin(&key(), &MINE, &OPTIONS).await.map(|_| ()) };
            assert!(timeout(Duration::from_millis(500), begin).await.is_err(), "the table is locked");
        });
    }
    let most = most_processes(&server, steps).await;
    assert!(most <= 1 + POOL + 1, "{most} processes, one of which holds the lock and one cancels");
    // Long before the server's own limit ends them. One at a time their claims are released, which waits for the lock as well.
    let left = Instant::now();
    let waiting = "SELECT count(*) > 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    while server.sql(waiting).trim() == "t" {
        assert!(left.elapsed() < Duration::from_secs(3), "a statement for which no caller waits is cancelled");
    }
    transaction.rollback().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_idle_are_closed_and_opened_again() {
    let (server, store) = with_a_store(small().idle_timeout(Duration::from_millis(200))).await;
    for _ in 0..2 {
        let mut steps = JoinSet::new();
        for _ in 0..20 {
            let store = store.clone();
            steps.spawn(async move { leave_record(&store, &key(), "response").await });
        }
        while let Some(step) = steps.join_next().await {
            step.unwrap();
        }
        let idle = Instant::now();
        while processes(&server) > 0 {
            assert!(idle.elapsed() < Duration::from_secs(10), "{} connections stay open", processes(&server));
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The task that closes them ends with the runtime in which it began.
#[test]
fn connections_are_closed_after_the_end_of_an_earlier_runtime_too() {
    let (server, store) = runtime().block_on(with_a_store(small().idle_timeout(Duration::from_millis(500))));
    runtime().block_on(async {
        leave_record(&store, &key(), "response").await;
        until("no connection is idle", async || processes(&server) == 0).await;
    });
}

#[tokio::test]
async fn a_server_that_has_no_connection_left_is_asked_again() {
    let server = Postgres::with(&["fsync=off", "max_connections=6"]).await;
    PostgresStore::from_options(server.url().parse().unwrap()).migrate().await.unwrap();
    let mut others = Vec::new();
    let full = loop {
        match PgConnection::connect(&server.url()).await {
            Ok(other) => others.push(other),
            Err(error) => break error,
        }
    };
    assert!(full.to_string().contains("too many clients"), "{full}");
    let proxy = Proxy::to(server.port()).await;
    let store = PostgresStore::from_options(server.url_through(proxy.port()).parse().unwrap());
    let step = tokio::spawn(async move { state_of(&store, &key()).await });
    until("the server was asked again", async || proxy.connections() > 1).await;
    drop(others);
    assert_eq!(step.await.unwrap(), "claimed");
}

/// A store behind a network, which has no connection yet.
async fn lazy(server: &Postgres, timeout: Duration) -> (Proxy, PostgresStore) {
    lazy_as("idem", server, timeout).await
}

async fn lazy_as(role: &str, server: &Postgres, timeout: Duration) -> (Proxy, PostgresStore) {
    PostgresStore::from_options(server.url().parse().unwrap()).migrate().await.unwrap();
    let proxy = Proxy::to(server.port()).await;
    let options: PgConnectOptions = server.url_through(proxy.port()).parse().unwrap();
    let pool = PgPool::connect_lazy_with(options.username(role));
    (proxy, small().timeout(timeout).with_pool(pool).unwrap())
}

/// As of a server that is stopped, and would have to take them all and throw them away when it goes on. The steps come one after the other,
/// so that the time of each ends while others wait.
#[tokio::test]
async fn steps_that_wait_for_a_silent_server_make_few_connections_and_the_next_one_uses_them() {
    let server = Postgres::quick().await;
    let (proxy, store) = lazy(&server, TIMEOUT).await;
    proxy.black_hole();
    let (start, mut steps) = (Instant::now(), JoinSet::new());
    for _ in 0..100 {
        tokio::time::sleep(TIMEOUT / 20).await;
        let store = store.clone();
        steps.spawn(async move { assert!(store.begin(&key(), &MINE, &OPTIONS).await.is_err()) });
    }
    while let Some(step) = steps.join_next().await {
        step.unwrap();
    }
    let (made, at_most) = (proxy.connections(), POOL as f64 * (start.elapsed().div_duration_f64(TIMEOUT) + 1.0));
    assert!(made as f64 <= at_most, "{made} connections, and not {at_most}");
    proxy.heal();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    assert!(proxy.connections() <= made + 1, "{} connections after {made}", proxy.connections());
}

/// Each step tries a dozen times, and each learns what is wrong.
async fn tries_together(proxy: &Proxy, store: &PostgresStore, is_wrong: fn(&Problem) -> bool) {
    let mut steps = JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        steps.spawn(async move { store.begin(&key(), &MINE, &OPTIONS).await.map(drop).unwrap_err() });
    }
    while let Some(refused) = steps.join_next().await {
        let refused = refused.unwrap();
        assert!(is_wrong(problem(&refused)), "{refused:?}");
    }
    assert!(proxy.connections() < 50, "{} connections", proxy.connections());
}

#[tokio::test]
async fn steps_that_find_a_read_only_server_try_again_together() {
    let server = Postgres::quick().await;
    let (proxy, store) = lazy(&server, Duration::from_secs(2)).await;
    reload(&server, "ALTER SYSTEM SET default_transaction_read_only = on");
    server.wait_until("SHOW default_transaction_read_only", "on").await;
    tries_together(&proxy, &store, |problem| matches!(problem, Problem::ReadOnly)).await;
    server.sql("BEGIN READ WRITE; ALTER ROLE idem SET default_transaction_read_only = off; COMMIT");
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

#[tokio::test]
async fn steps_that_find_no_connection_left_try_again_together() {
    let server = Postgres::with(&["fsync=off", "max_connections=6"]).await;
    let (proxy, store) = lazy(&server, Duration::from_secs(2)).await;
    let mut others = Vec::new();
    while let Ok(other) = PgConnection::connect(&server.url()).await {
        others.push(other);
    }
    tries_together(&proxy, &store, |problem| problem.to_string().contains("too many clients")).await;
    drop(others);
    assert_eq!(state_of(&store, &key()).await, "claimed");
}

/// As with a wrong password. Such a step does not try again, and the ones after it learn of it.
#[tokio::test]
async fn steps_that_are_not_let_in_make_few_connections() {
    let server = Postgres::quick().await;
    server.sql("CREATE ROLE shop SUPERUSER");
    let (proxy, store) = lazy_as("shop", &server, Duration::from_secs(2)).await;
    tries_together(&proxy, &store, |problem| {
        let Problem::Refused(sqlx::Error::Database(refused)) = problem else { return false };
        refused.code().is_some_and(|code| code == "28000") && problem.to_string().contains("not permitted to log in")
    })
    .await;
    server.sql("ALTER ROLE shop LOGIN");
    until("the role is let in", async || state_of(&store, &key()).await == "claimed").await;
}

/// What was wrong a while ago may be right by now, and the steps that a connection would refuse do not try again.
#[tokio::test]
async fn steps_that_come_together_after_a_refusal_are_all_let_in() {
    let server = Postgres::quick().await;
    server.sql("CREATE ROLE shop SUPERUSER");
    let (_proxy, store) = lazy_as("shop", &server, Duration::from_secs(2)).await;
    assert!(state_of(&store, &key()).await.contains("not permitted to log in"));
    server.sql("ALTER ROLE shop LOGIN");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut steps = JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        steps.spawn(async move { state_of(&store, &key()).await });
    }
    while let Some(state) = steps.join_next().await {
        assert_eq!(state.unwrap(), "claimed");
    }
}

/// The first one has a connection, and no statement has ended on it.
#[tokio::test]
async fn a_step_after_a_refusal_is_let_in_beside_the_first_one_that_is() {
    let server = Postgres::quick().await;
    server.sql("CREATE ROLE shop SUPERUSER");
    let (_proxy, store) = lazy_as("shop", &server, Duration::from_secs(20)).await;
    assert!(state_of(&store, &key()).await.contains("not permitted to log in"));
    server.sql("ALTER ROLE shop LOGIN");
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    other.execute("BEGIN; LOCK TABLE idempotency").await.unwrap();
    let mut steps = JoinSet::new();
    for count in ["1", "2"] {
        let store = store.clone();
        steps.spawn(async move { assert_eq!(state_of(&store, &key()).await, "claimed") });
        server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", count).await;
    }
    other.execute("ROLLBACK").await.unwrap();
    steps.join_all().await;
}

#[tokio::test]
async fn steps_after_the_end_of_trouble_get_their_connections() {
    let server = Postgres::quick().await;
    let (_proxy, store) = lazy(&server, TIMEOUT).await;
    reload(&server, "ALTER SYSTEM SET default_transaction_read_only = on");
    server.wait_until("SHOW default_transaction_read_only", "on").await;
    assert!(state_of(&store, &key()).await.contains("read-only"));
    server.sql("BEGIN READ WRITE; ALTER ROLE idem SET default_transaction_read_only = off; COMMIT");
    until("a claim is made", async || state_of(&store, &key()).await == "claimed").await;
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    other.execute("BEGIN; LOCK TABLE idempotency").await.unwrap();
    let mut steps = JoinSet::new();
    for _ in 0..POOL {
        let store = store.clone();
        steps.spawn(async move { store.begin(&key(), &MINE, &OPTIONS).await.map(drop).unwrap_err() });
    }
    while let Some(refused) = steps.join_next().await {
        let refused = refused.unwrap();
        assert!(matches!(problem(&refused), Problem::Busy(_) | Problem::TimedOut { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn a_connection_is_used_by_the_next_step_if_its_own_stopped_waiting() {
    let server = Postgres::quick().await;
    PostgresStore::from_options(server.url().parse().unwrap()).migrate().await.unwrap();
    let proxy = Proxy::to(server.port()).await;
    let pool = PgPool::connect_lazy_with(server.url_through(proxy.port()).parse().unwrap());
    let store = small().max_connections(1).timeout(Duration::from_secs(20)).with_pool(pool).unwrap();
    proxy.black_hole();
    timeout(TIMEOUT, state_of(&store, &key())).await.unwrap_err();
    proxy.heal();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_is_used_stays_open() {
    let (server, store) = with_a_store(small().idle_timeout(Duration::from_secs(1))).await;
    let process = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let before = server.sql(process);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        leave_record(&store, &key(), "response").await;
    }
    assert_eq!(server.sql(process), before);
}

#[tokio::test]
async fn options_of_sqlx_lead_to_a_store() {
    let server = Postgres::quick().await;
    let options: PgConnectOptions = server.url().parse().unwrap();
    let store = PostgresStore::from_options(options.clone());
    store.migrate().await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    let store = PostgresStore::builder().connect_with(options.clone()).await.unwrap();
    assert_eq!(state_of(&store, &key()).await, "claimed");
    // Only the builder connects at once.
    let nowhere = options.database("nowhere");
    assert!(matches!(
        PostgresStore::builder().connect_with(nowhere.clone()).await,
        Err(ConnectError::Connection(sqlx::Error::Database(_)))
    ));
    let refused = PostgresStore::from_options(nowhere).begin(&key(), &MINE, &OPTIONS).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
}

/// As when a password changes.
#[tokio::test]
async fn new_options_of_the_pool_of_the_handlers_are_those_of_the_store() {
    let server = Postgres::quick().await;
    server.sql("CREATE ROLE rotated SUPERUSER LOGIN");
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let store = PostgresStore::from_pool(pool.clone());
    pool.set_connect_options((*pool.connect_options()).clone().username("rotated"));
    store.migrate().await.unwrap();
    assert_eq!(server.sql("SELECT tableowner FROM pg_tables WHERE tablename = 'idempotency'").trim(), "rotated");
    assert_eq!(state_of(&store, &key()).await, "claimed");
    server.wait_until("SELECT count(*) FROM pg_stat_activity WHERE usename = 'rotated'", "1").await;
}

/// A program without `async` may drive a runtime for one step at a time, and keep it.
#[test]
fn connections_that_are_made_in_a_runtime_that_is_not_driven_do_not_keep_their_places() {
    let (driven, undriven) = (runtime(), runtime());
    let server = driven.block_on(Postgres::quick());
    let (proxy, store) = driven.block_on(lazy(&server, TIMEOUT));
    proxy.black_hole();
    undriven.block_on(all_time_out(&store));
    proxy.heal();
    driven.block_on(until("a claim is made", async || state_of(&store, &key()).await == "claimed"));
}

/// The server is about to end their statements, and what they may have claimed is about to be released.
#[test]
fn statements_that_are_left_in_a_runtime_that_is_not_driven_do_not_keep_their_places() {
    let (driven, undriven) = (runtime(), runtime());
    let (server, store) = driven.block_on(with_a_store(small().timeout(TIMEOUT)));
    let mut other = driven.block_on(PgConnection::connect(&server.url())).unwrap();
    driven.block_on(other.execute("BEGIN; LOCK TABLE idempotency")).unwrap();
    undriven.block_on(all_time_out(&store));
    driven.block_on(other.execute("ROLLBACK")).unwrap();
    driven.block_on(until("a claim is made", async || state_of(&store, &key()).await == "claimed"));
}

/// As many steps as the store has connections.
async fn all_time_out(store: &PostgresStore) {
    let mut steps = JoinSet::new();
    for _ in 0..POOL {
        let store = store.clone();
        steps.spawn(
            async move { timeout(TIMEOUT / 4, store.begin(&key(), &MINE, &OPTIONS)).await.map(drop).unwrap_err() },
        );
    }
    steps.join_all().await;
}

/// The server gives up a little sooner than the store, whose step is then not in doubt.
#[tokio::test]
async fn a_step_that_waits_for_the_lock_of_a_row_is_busy_and_keeps_its_connection() {
    let server = Postgres::quick().await;
    let proxy = Proxy::to(server.port()).await;
    let store = PostgresStore::connect(&server.url_through(proxy.port())).await.unwrap();
    store.migrate().await.unwrap();
    let expired = key();
    leave_record(&store, &expired, "response").await;
    server.sql("UPDATE idempotency SET expires_at = now()");
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut in_the_way = other.begin().await.unwrap();
    in_the_way.execute("SELECT FROM idempotency FOR UPDATE").await.unwrap();
    let connections = proxy.connections();
    let Err(refused) = store.begin(&expired, &MINE, &OPTIONS).await else { panic!("the row is locked") };
    assert!(matches!(problem(&refused), Problem::Busy(_)), "{refused}");
    assert_eq!(proxy.connections(), connections, "no connection to cancel, and none in place of one that was closed");
    in_the_way.rollback().await.unwrap();
    assert_eq!(state_of(&store, &expired).await, "claimed");
}

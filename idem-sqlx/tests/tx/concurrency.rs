//! Requests that meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use idem_axum::Idempotency;
use idem_runtime::{Begin, BeginOptions, Fingerprint, Key, KeyStatus, Scope, Store};
use idem_sqlx::PostgresStore;
use idem_testkit::proxy::Proxy;
use idem_testkit::wait::until;
use sqlx::Database;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::shop::{
    Effects, Shop, over_both, over_postgres, over_sqlite, postgres_service, send, sqlite_service, start,
};

over_both!(
    a_duplicate_in_this_process_is_refused_or_waits,
    a_handler_whose_client_hung_up_goes_on,
    retries_that_meet_all_get_the_replay
);

async fn a_duplicate_in_this_process_is_refused_or_waits<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    let duplicate = shop.send("/act/wait-201", "a").await;
    assert!(duplicate.status == 409 && duplicate.is("idempotency_key_locked"), "{duplicate:?}");
    assert_eq!(shop.send("/act/201", "a").await.status, 422);
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 1"));

    let first = shop.start("/waits/wait-201", "b");
    shop.app.written().await;
    let waiters: Vec<_> = (0..8).map(|_| shop.start("/waits/wait-201", "b")).collect();
    tokio::task::yield_now().await;
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 2"));
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().brief(), (201, "run 2"));
    }
    assert_eq!((shop.effects().await, shop.app.runs()), (2, 2));
}

/// Connections that share a cache lock tables for each other: one that reads waits for one that writes, or sees what is not committed.
#[tokio::test]
async fn a_cache_that_the_pool_shares_keeps_no_replay_and_no_duplicate_waiting() {
    let shop = Shop::sqlite_with(4, |options| options.shared_cache(true)).await;
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 1"));
    let first = shop.start("/act/wait-201", "b");
    shop.app.written().await;
    let duplicate = shop.send("/act/wait-201", "b").await;
    assert!(duplicate.is("idempotency_key_locked"), "{duplicate:?}");
    let replay = shop.send("/act/201", "a").await;
    assert!(replay.replayed, "{replay:?}");
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 2"));
    assert_eq!((shop.effects().await, shop.app.runs()), (2, 2));
}

async fn retries_that_meet_all_get_the_replay<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 1"));
    // The connection is on its way back to its pool.
    let pool = &shop.app.pool;
    until("all connections are idle", async || pool.num_idle() == usize::try_from(pool.size()).unwrap()).await;
    let connections = pool.size();
    assert!(shop.send("/act/201", "a").await.replayed);
    assert_eq!(pool.size(), connections, "a replay closes none");
    let retries: Vec<_> = (0..16).map(|_| shop.start("/act/201", "a")).collect();
    for retry in retries {
        let retry = retry.await.unwrap();
        assert_eq!((retry.brief(), retry.replayed), ((201, "run 1"), true));
    }
}

async fn a_handler_whose_client_hung_up_goes_on<D: Database, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Effects,
{
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    first.abort();
    shop.app.go_on.add_permits(1);
    shop.idempotency.drain().await;
    let retry = shop.send("/act/wait-201", "a").await;
    assert_eq!((retry.brief(), retry.replayed), ((201, "run 1"), true));
    assert_eq!(shop.effects().await, 1);
}

#[tokio::test]
async fn a_duplicate_in_another_process_is_refused_or_waits() {
    let shop = Shop::postgres(4).await;
    let (app, _, other) = postgres_service(PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap());
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    for _ in 0..20 {
        let duplicate = send(&other, "/act/wait-201", "a", "").await;
        assert!(duplicate.status == 409 && duplicate.is("idempotency_key_locked"), "{duplicate:?}");
        let mismatch = send(&other, "/act/wait-201", "a", "another body").await;
        assert!(mismatch.status == 422 && mismatch.is("idempotency_key_mismatch"), "{mismatch:?}");
    }
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 1"));
    let replay = send(&other, "/act/wait-201", "a", "").await;
    assert_eq!((replay.brief(), replay.replayed), ((201, "run 1"), true));

    let first = shop.start("/waits/wait-201", "b");
    shop.app.written().await;
    let waiter = start(&other, "/waits/wait-201", "b");
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 2"));
    assert_eq!(waiter.await.unwrap().brief(), (201, "run 2"));
    assert_eq!((shop.effects().await, app.runs()), (2, 0));
}

/// A pool of one connection has none left for a `LISTEN`.
#[tokio::test]
async fn who_waits_for_another_process_takes_no_connection_of_the_pool() {
    let shop = Shop::postgres(4).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&shop.keeper.url()).await.unwrap();
    let (app, _, other) = postgres_service(pool);
    let first = shop.start("/waits/wait-201", "a");
    shop.app.written().await;
    let waiter = start(&other, "/waits/wait-201", "a");
    shop.keeper.wait_until("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'", "1").await;
    let meanwhile = timeout(Duration::from_secs(10), send(&other, "/act/201", "b", "")).await.expect("at once");
    assert_eq!(meanwhile.status, 201);
    assert_eq!(app.pool.size(), 1);
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 1"));
    assert_eq!(waiter.await.unwrap().brief(), (201, "run 1"));
}

/// The row of a transaction is not committed, and a statement that met it would wait for its end.
#[tokio::test]
async fn an_endpoint_without_a_transaction_does_not_wait_for_one_with_its_key() {
    let shop = Shop::postgres(4).await;
    let (app, elsewhere, other) = postgres_service(PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap());
    let first = shop.start("/global", "a");
    shop.app.written().await;
    for router in [&shop.router, &other] {
        let refused = timeout(Duration::from_secs(2), send(router, "/leased", "a", "")).await.expect("at once");
        assert_eq!(refused.status, 422, "{refused:?}");
    }
    // An operator sees the key in this process. To another one, its row is not there before the commit.
    let key = Key::parse(b"a").unwrap();
    let here = shop.idempotency.inspect(&Scope::GLOBAL, &key).await.unwrap().unwrap();
    assert_eq!(here.status(), KeyStatus::InFlight);
    assert!(elsewhere.inspect(&Scope::GLOBAL, &key).await.unwrap().is_none());
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
    assert!(elsewhere.inspect(&Scope::GLOBAL, &key).await.unwrap().is_some());
    // And the other way round.
    assert_eq!(send(&other, "/leased", "b", "").await.status, 200);
    assert_eq!(shop.send("/global", "b").await.status, 422);
    assert_eq!(app.runs(), 1);

    // In SQLite, whose writers wait for each other, this process knows of the key, and an operator learns that it has an owner.
    let shop = Shop::sqlite(4).await;
    let first = shop.start("/global", "a");
    shop.app.written().await;
    let at_once = Duration::from_secs(2);
    let refused = timeout(at_once, shop.send("/leased", "a")).await.expect("at once");
    assert_eq!(refused.status, 422, "{refused:?}");
    let key = Key::parse("a".as_bytes()).unwrap();
    let revoked = timeout(at_once, shop.idempotency.revoke(&Scope::GLOBAL, &key)).await.expect("at once");
    assert!(!revoked.unwrap());
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
}

/// The locks that tell of a key in flight are of the database, and not of a table.
#[tokio::test]
async fn the_same_key_in_another_table_of_the_database_is_another_key() {
    let shop = Shop::postgres(4).await;
    let pool = PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap();
    let other = PostgresStore::builder().table("other").with_pool(pool).unwrap();
    other.migrate().await.unwrap();
    let other = Idempotency::builder(other).namespace("shop").build();
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    assert_eq!(send(&over_postgres::router(&shop.app, other), "/act/201", "a", "").await.brief(), (201, "run 2"));
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 1"));
}

/// The server gives the locks of a transaction that ends back in several steps, and others may look in between.
#[tokio::test]
async fn an_owner_that_has_given_a_part_of_its_locks_back_is_no_mismatch() {
    let shop = Shop::postgres(4).await;
    let first = shop.start("/act/wait-500", "a");
    shop.app.written().await;
    let lock = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks \
        WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'";
    let lock: i64 = shop.keeper.sql(lock).trim().parse().unwrap();
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 500);
    let mut rest = shop.app.pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock).execute(&mut *rest).await.unwrap();
    let retry = shop.send("/act/wait-500", "a").await;
    assert!(retry.is("idempotency_key_locked") && retry.retry_after, "{retry:?}");
}

#[tokio::test]
async fn many_duplicates_at_once_in_two_processes_run_once() {
    let shop = Shop::postgres(8).await;
    let (app, _, other) = postgres_service(PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap());
    for round in 0..10 {
        let key = round.to_string();
        let mut all = JoinSet::new();
        for turn in 0..16 {
            let router = if turn % 2 == 0 { shop.router.clone() } else { other.clone() };
            let key = key.clone();
            all.spawn(async move { send(&router, "/waits/201", &*key, "").await });
        }
        let replies = all.join_all().await;
        assert!(replies.iter().all(|reply| reply.status == 201 && reply.body == replies[0].body), "{replies:?}");
        assert_eq!(shop.app.runs() + app.runs(), round + 1);
    }
    assert_eq!(shop.effects().await, 10);
}

#[tokio::test]
async fn a_small_pool_and_many_requests_do_not_deadlock() {
    let shop = Shop::postgres(2).await;
    let mut all = JoinSet::new();
    for key in 0..50 {
        let router = shop.router.clone();
        all.spawn(async move { send(&router, "/act/pool-201", &*key.to_string(), "").await });
    }
    let replies = all.join_all().await;
    assert!(replies.iter().all(|reply| reply.status == 201), "{replies:?}");
    assert_eq!(shop.effects().await, 50);
}

#[tokio::test]
async fn rules_that_changed_are_told_from_another_request() {
    let shop = Shop::postgres(4).await;
    let next = over_postgres::next_router(&shop.app, shop.idempotency.clone());
    refuses_what_has_other_rules(shop, next).await;
    let shop = Shop::sqlite(4).await;
    let next = over_sqlite::next_router(&shop.app, shop.idempotency.clone());
    refuses_what_has_other_rules(shop, next).await;

    // In another process, which does not see the row of the first one.
    let shop = Shop::postgres(4).await;
    let (app, idempotency, same) = postgres_service(PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap());
    let first = shop.start("/act/wait-201", "b");
    shop.app.written().await;
    let other_endpoint = send(&same, "/all/wait-201", "b", "").await;
    assert!(other_endpoint.status == 422 && other_endpoint.is("idempotency_key_mismatch"), "{other_endpoint:?}");
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
    refuses_what_has_other_rules(shop, over_postgres::next_router(&app, idempotency)).await;
}

async fn refuses_what_has_other_rules<D: Database, K>(shop: Shop<D, K>, next: axum::Router) {
    let changed = async || {
        let refused = send(&next, "/act/wait-201", "a", "").await;
        assert!(refused.status == 409 && refused.is("idempotency_policy_changed"), "{refused:?}");
    };
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    changed().await;
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
    changed().await;
}

#[tokio::test]
async fn a_request_beyond_the_maximum_of_executions_leaves_nothing() {
    let shop = Shop::postgres(4).await;
    let store = PostgresStore::from_pool(shop.app.pool.clone());
    let idempotency = Idempotency::builder(store).namespace("shop").max_executions(1).build();
    let router = over_postgres::router(&shop.app, idempotency.clone());
    let first = start(&router, "/act/wait-201", "a");
    shop.app.written().await;
    for key in ["b", "c", "d", "e", "f", "g"] {
        // A retry at once is told the same.
        for _ in 0..3 {
            let refused = send(&router, "/act/201", key, "").await;
            assert!(refused.status == 503 && refused.retry_after, "{refused:?}");
            assert!(refused.is("idempotency_too_many_executions"), "{refused:?}");
        }
    }
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
    idempotency.drain().await;
    assert_eq!(send(&router, "/act/201", "b", "").await.brief(), (201, "run 2"));
    assert_eq!(shop.effects().await, 2);
}

#[tokio::test]
async fn a_replay_does_not_wait_for_a_connection_of_the_pool() {
    let shop = Shop::postgres(2).await;
    assert_eq!(shop.send("/act/201", "a").await.status, 201);
    let first = shop.start("/act/wait-201", "b");
    shop.app.written().await;
    let replay = timeout(Duration::from_secs(5), shop.send("/act/201", "a")).await.expect("at once");
    assert!(replay.replayed);
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);

    // The service itself has all of them.
    let pool = &shop.app.pool;
    let connections = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let replay = timeout(Duration::from_secs(5), shop.send("/act/201", "a")).await.expect("at once");
    assert!(replay.replayed);
    drop(connections);
}

/// What it finds before its turn decides only of a record and of a claim that has an owner.
#[tokio::test]
async fn what_has_expired_or_has_no_owner_is_judged_when_it_is_its_turn() {
    let shop = Shop::postgres(4).await;
    assert_eq!(shop.send("/act/201", "expired").await.status, 201);
    assert_eq!(shop.send("/act/commit-201", "unknown").await.status, 500);
    shop.keeper.sql("UPDATE idempotency SET expires_at = now() WHERE record IS NOT NULL");
    let key = shop.idempotency.storage_key(&Scope::GLOBAL, &Key::parse(b"claimed").unwrap());
    let options = BeginOptions::new(Duration::from_secs(60), Duration::from_secs(60));
    let store = PostgresStore::from_pool(shop.app.pool.clone());
    let begun = store.begin(&key, &Fingerprint::from_bytes([1; 32]), &options).await;
    assert!(matches!(begun.unwrap(), Begin::Claimed(_)));

    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(500));
    let (app, _, router) = postgres_service(pool.connect(&shop.keeper.url()).await.unwrap());
    let gate = app.pool.acquire().await.unwrap();
    for (path, key) in [("/act/201", "expired"), ("/act/commit-201", "unknown")] {
        let refused = send(&router, path, key, "").await;
        assert!(refused.is("idempotency_store_unavailable"), "{key}: {refused:?}");
    }
    assert!(send(&router, "/act/201", "claimed", "").await.is("idempotency_key_mismatch"));
    drop(gate);
    let again = send(&router, "/act/201", "expired", "").await;
    assert_eq!((again.brief(), again.replayed), ((201, "run 1"), false), "the first run here");
    assert!(send(&router, "/act/commit-201", "unknown", "").await.is("idempotency_outcome_unknown"));
}

#[tokio::test]
async fn requests_that_are_dropped_leave_no_connection_in_a_transaction() {
    let shop = Shop::postgres(3).await;
    for round in 0..60 {
        let key = round.to_string();
        let request = send(&shop.router, "/act/201", &*key, "");
        tokio::select! {
            biased;
            _ = request => {}
            () = async { for _ in 0..round { tokio::task::yield_now().await } } => {}
        }
    }
    shop.idempotency.drain().await;
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    let mut all = JoinSet::new();
    for key in 0..20 {
        let router = shop.router.clone();
        all.spawn(async move { send(&router, "/act/201", &*format!("after-{key}"), "").await });
    }
    let replies = all.join_all().await;
    assert!(replies.iter().all(|reply| reply.status == 201), "{replies:?}");
    // A connection may be on its way back to its pool.
    shop.keeper.wait_until(idle, "0").await;
    let keys: usize =
        shop.keeper.sql("SELECT count(*) FROM idempotency WHERE record IS NOT NULL").trim().parse().unwrap();
    assert_eq!(shop.effects().await, keys, "each run has its record");
}

/// The number of its session has not arrived, so no one can be asked what became of it.
#[tokio::test]
async fn a_transaction_that_does_not_begin_keeps_no_place_in_the_pool() {
    let shop = Shop::postgres(1).await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let (app, _, router) = postgres_service(pool.connect(&shop.keeper.url_through(proxy.port())).await.unwrap());
    proxy.forget();
    let refused = send(&router, "/act/201", "a", "").await;
    assert!(refused.status == 503 && refused.retry_after, "{refused:?}");
    let ran = timeout(Duration::from_secs(20), send(&router, "/act/201", "b", "")).await.expect("a new connection");
    assert_eq!((ran.brief(), app.runs()), ((201, "run 1"), 1));
}

/// As behind a firewall that has forgotten them.
#[tokio::test]
async fn idle_connections_of_the_pool_that_are_dead_cost_less_than_its_timeout() {
    let shop = Shop::postgres(1).await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPoolOptions::new().min_connections(2).connect(&shop.keeper.url_through(proxy.port())).await.unwrap();
    let (app, _, router) = postgres_service(pool);
    until("both are idle", async || app.pool.num_idle() == 2).await;
    proxy.forget();
    let ran = timeout(Duration::from_secs(20), send(&router, "/act/201", "a", "")).await.expect("a new connection");
    assert_eq!((ran.brief(), app.runs()), ((201, "run 1"), 1));
}

/// As if the network broke right after the commit: sqlx asks the connection whether it is alive before it is idle.
#[tokio::test]
async fn a_connection_that_dies_on_its_way_back_to_the_pool_keeps_no_place_in_it() {
    let shop = Shop::postgres(1).await;
    let proxy = Arc::new(Proxy::to(shop.keeper.port()).await);
    let (network, breaks) = (Arc::clone(&proxy), Arc::new(AtomicBool::new(true)));
    let pool = PgPoolOptions::new().max_connections(1).after_release(move |_, _| {
        if breaks.swap(false, Ordering::SeqCst) {
            network.forget();
        }
        Box::pin(async { Ok(true) })
    });
    let (app, _, router) = postgres_service(pool.connect(&shop.keeper.url_through(proxy.port())).await.unwrap());
    assert_eq!(send(&router, "/act/201", "a", "").await.brief(), (201, "run 1"));
    let ran = timeout(Duration::from_secs(20), send(&router, "/act/201", "b", "")).await.expect("a new connection");
    assert_eq!((ran.brief(), app.runs()), ((201, "run 2"), 2));
}

/// The turn of a request comes late, and then other code has all connections.
#[tokio::test]
async fn a_turn_and_a_connection_are_waited_for_no_longer_than_the_pool_says() {
    const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
    let shop = Shop::postgres(2).await;
    let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(ACQUIRE_TIMEOUT);
    let (app, ..) = postgres_service(pool.connect(&shop.keeper.url()).await.unwrap());
    let store = PostgresStore::builder().timeout(ACQUIRE_TIMEOUT / 5).with_pool(app.pool.clone()).unwrap();
    let router = over_postgres::router(&app, Idempotency::new(store));
    let _one = app.pool.acquire().await.unwrap();
    let first = start(&router, "/act/wait-201", "a");
    app.written().await;
    let asked = Instant::now();
    let second = start(&router, "/act/201", "b");
    tokio::time::sleep(ACQUIRE_TIMEOUT / 2).await;
    let another = app.pool.acquire();
    tokio::pin!(another);
    assert!(another.as_mut().now_or_never().is_none(), "both are in use");
    app.go_on.add_permits(1);
    let _another = another.await.unwrap();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (201, 503));
    // Both one after the other would take half as long again.
    let waited = asked.elapsed();
    assert!((ACQUIRE_TIMEOUT..ACQUIRE_TIMEOUT * 7 / 5).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn a_transaction_that_the_database_refuses_leaves_its_connection_to_the_pool() {
    let shop = Shop::postgres(1).await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPoolOptions::new().max_connections(4);
    let (app, _, router) = postgres_service(pool.connect(&shop.keeper.url_through(proxy.port())).await.unwrap());
    shop.keeper.sql("ALTER FUNCTION idempotency_claim RENAME TO gone");
    for key in 0..10 {
        assert!(send(&router, "/act/201", &*key.to_string(), "").await.is("idempotency_store_unavailable"));
        let are_idle = async || app.pool.num_idle() == usize::try_from(app.pool.size()).unwrap();
        until("its connection is back", are_idle).await;
    }
    assert!(
        proxy.connections() <= 2,
        "{} connections, and not that of the pool and one of the store",
        proxy.connections()
    );
    shop.keeper.sql("ALTER FUNCTION gone RENAME TO idempotency_claim");
    assert_eq!(send(&router, "/act/201", "0", "").await.brief(), (201, "run 1"));
}

/// As after a restart of the server. Nothing can have happened in a transaction that did not begin.
#[tokio::test]
async fn connections_of_the_pool_that_broke_while_they_were_idle_cost_no_request() {
    let shop = Shop::postgres(1).await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPoolOptions::new().min_connections(3).max_connections(4).test_before_acquire(false);
    let (app, _, router) = postgres_service(pool.connect(&shop.keeper.url_through(proxy.port())).await.unwrap());
    until("several are idle", async || app.pool.num_idle() >= 3).await;
    for (key, run) in [(Some("a"), "run 1"), (None, "run 2")] {
        until("one is idle", async || app.pool.num_idle() > 0).await;
        proxy.cut();
        assert_eq!(send(&router, "/act/201", key, "").await.brief(), (201, run), "{key:?}");
    }
}

/// As while an operator compacts the table. The number of its session has not arrived, so no one could cancel it.
#[tokio::test]
async fn a_claim_that_waits_for_the_table_does_not_go_on_at_the_server() {
    let shop = Shop::postgres(4).await;
    let mut operator = shop.app.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE idempotency").execute(&mut *operator).await.unwrap();
    let requests: Vec<_> = ["a", "b", "c"].map(|key| shop.start("/act/201", key)).into();
    for request in requests {
        let refused = request.await.unwrap();
        assert!(refused.is("idempotency_store_unavailable") && refused.retry_after, "{refused:?}");
    }
    shop.keeper.wait_until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", "0").await;
    operator.rollback().await.unwrap();
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 1"));
}

/// As one that an operator looks at.
#[tokio::test]
async fn a_row_that_others_keep_locked_is_503_in_time_though_the_server_limits_each_wait() {
    let shop = Shop::postgres(2).await;
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 1"));
    shop.keeper.sql("UPDATE idempotency SET expires_at = now(); ALTER ROLE idem SET lock_timeout = '1500ms'");
    let (_, _, router) = postgres_service(PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap());
    let mut other = shop.app.pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM idempotency FOR UPDATE").execute(&mut *other).await.unwrap();
    let refused = timeout(Duration::from_secs(12), send(&router, "/act/201", "a", ""))
        .await
        .expect("four seconds, and the last wait");
    assert!(refused.is("idempotency_store_unavailable") && refused.retry_after, "{refused:?}");
    other.rollback().await.unwrap();
    assert_eq!(send(&router, "/act/201", "a", "").await.brief(), (201, "run 1"));
}

#[tokio::test]
async fn another_process_that_writes_to_the_file_is_waited_for_and_then_503() {
    let shop = Shop::sqlite(4).await;
    let options = shop.app.pool.connect_options().as_ref().clone();
    let (_, _, other) = sqlite_service(sqlx::SqlitePool::connect_lazy_with(options));
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    let busy = send(&other, "/act/201", "b", "").await;
    assert!(busy.status == 503 && busy.retry_after, "{busy:?}");
    let waits = start(&other, "/act/wait-201", "a");
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().brief(), (201, "run 1"));
    let replay = waits.await.unwrap();
    assert!(replay.brief() == (201, "run 1") || replay.status == 503, "{replay:?}");
    assert_eq!(send(&other, "/act/wait-201", "a", "").await.brief(), (201, "run 1"));
    assert_eq!(shop.effects().await, 1);
}

#[tokio::test]
async fn another_process_that_writes_to_the_file_costs_the_pool_no_connection() {
    let shop = Shop::sqlite(4).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let pool = SqlitePoolOptions::new().max_connections(1).after_connect(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    });
    let options = shop.app.pool.connect_options().as_ref().clone();
    let (_, _, other) = sqlite_service(pool.connect_with(options).await.unwrap());
    let first = shop.start("/act/wait-201", "a");
    shop.app.written().await;
    assert_eq!(send(&other, "/act/201", "b", "").await.status, 503);
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(send(&other, "/act/201", "b", "").await.brief(), (201, "run 1"));
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_replay_does_not_wait_for_another_process_that_writes_to_the_file() {
    let shop = Shop::sqlite(4).await;
    let options = shop.app.pool.connect_options().as_ref().clone().busy_timeout(Duration::from_secs(60));
    let (_, _, patient) = sqlite_service(sqlx::SqlitePool::connect_lazy_with(options));
    assert_eq!(shop.send("/act/201", "a").await.brief(), (201, "run 1"));
    let writes = shop.start("/act/wait-201", "b");
    shop.app.written().await;
    let replay = timeout(Duration::from_secs(10), send(&patient, "/act/201", "a", "")).await.expect("at once");
    assert_eq!(replay.brief(), (201, "run 1"));
    shop.app.go_on.add_permits(1);
    assert_eq!(writes.await.unwrap().brief(), (201, "run 2"));
}

#[tokio::test]
async fn transactions_of_one_process_take_turns_in_sqlite() {
    let shop = Shop::sqlite(4).await;
    let mut all = JoinSet::new();
    for key in 0..50 {
        let router = shop.router.clone();
        all.spawn(async move { send(&router, "/act/201", &*key.to_string(), "").await });
    }
    let replies = all.join_all().await;
    assert!(replies.iter().all(|reply| reply.status == 201), "{replies:?}");
    assert_eq!(shop.effects().await, 50);
}

#[tokio::test]
async fn a_claim_without_an_owner_is_refused_or_taken_over() {
    let shop = Shop::postgres(4).await;
    for path in ["/act/commit-201", "/reruns/commit-201"] {
        assert_eq!(shop.send(path, path).await.status, 500);
    }
    for _ in 0..3 {
        let refused = shop.send("/act/commit-201", "/act/commit-201").await;
        assert!(refused.is("idempotency_outcome_unknown"), "{refused:?}");
    }
    assert_eq!(shop.effects().await, 2);
    // It runs again, and ends its transaction again.
    assert_eq!(shop.send("/reruns/commit-201", "/reruns/commit-201").await.status, 500);
    assert_eq!((shop.effects().await, shop.app.runs()), (3, 3));
    let left = PostgresStore::from_pool(shop.app.pool.clone()).clean_once().await.unwrap();
    assert_eq!(left, 0, "claims whose outcome is unknown stay for the TTL");
}

/// Its take-over would wait for the end of the other one, with a connection.
#[tokio::test]
async fn a_claim_that_another_process_takes_over_is_in_flight() {
    let shop = Shop::postgres(4).await;
    let (app, operator, other) = postgres_service(PgPoolOptions::new().connect(&shop.keeper.url()).await.unwrap());
    assert_eq!(shop.send("/act/201", "another").await.status, 201);
    let path = "/reruns/wait-commit-201";
    shop.app.go_on.add_permits(1);
    assert_eq!(shop.send(path, "a").await.status, 500);
    shop.app.written().await;
    let first = shop.start(path, "a");
    shop.app.written().await;
    let duplicate = timeout(Duration::from_secs(4), send(&other, path, "a", "")).await.expect("at once");
    assert!(duplicate.is("idempotency_key_locked"), "{duplicate:?}");
    let key = Key::parse(b"a").unwrap();
    for operator in [&shop.idempotency, &operator] {
        let forgotten = timeout(Duration::from_secs(2), operator.forget(&Scope::GLOBAL, &key)).await;
        assert!(!forgotten.expect("at once").unwrap(), "its owner is alive");
    }
    assert!(shop.send("/act/201", "another").await.replayed);
    shop.app.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, 500);
    app.go_on.add_permits(1);
    assert_eq!((send(&other, path, "a", "").await.status, app.runs()), (500, 1), "its outcome is unknown again");
}

/// Otherwise each try would keep a connection of the pool until the lock is free.
#[tokio::test]
async fn a_take_over_that_waits_for_a_lock_does_not_go_on_at_the_server() {
    let shop = Shop::postgres(4).await;
    assert_eq!(shop.send("/reruns/commit-201", "a").await.status, 500);
    let mut gate = shop.app.pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM idempotency FOR UPDATE").execute(&mut *gate).await.unwrap();
    let retry = shop.send("/reruns/commit-201", "a").await;
    assert!(retry.status == 503 && retry.retry_after, "{retry:?}");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    shop.keeper.wait_until(waits, "0").await;
}

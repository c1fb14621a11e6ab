//! `once` in a transaction of the caller: the id of a message, what its function writes and what is recorded are one commit.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

use std::cell::Cell;
use std::error::Error;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use idem_runtime::{Abandoned, CachedStore, Idempotency, Once, RefusalReason, Store, WhenInFlight};
use idem_sqlx::{Dialect, OnceExt, PostgresStore, SqliteStore};
use idem_testkit::postgres::Postgres as Server;
use idem_testkit::proxy::{Direction, Fault, Proxy};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Pool, Postgres, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tempfile::TempDir;
use tokio::sync::oneshot;

#[derive(Debug)]
enum Failure {
    AsAsked,
    Refused(RefusalReason),
}

impl From<RefusalReason> for Failure {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(reason)
    }
}

impl Failure {
    /// Why the function did not run.
    fn reason(&self) -> &RefusalReason {
        match self {
            Self::Refused(reason) => reason,
            Self::AsAsked => panic!("the function ran"),
        }
    }

    /// The text of all causes.
    fn chain(&self) -> String {
        let mut text = String::new();
        let mut cause: Option<&dyn Error> = Some(self.reason());
        while let Some(error) = cause {
            text.push_str(&format!("{error}: "));
            cause = error.source();
        }
        text
    }
}

/// A consumer and its database.
struct Shop<D: sqlx::Database, K> {
    pool: Pool<D>,
    idempotency: Idempotency,
    runs: Cell<usize>,
    keeper: K,
}

impl Shop<Postgres, Server> {
    async fn postgres() -> Self {
        let keeper = Server::quick().await;
        let pool = PgPoolOptions::new().max_connections(4).connect(&keeper.url()).await.unwrap();
        let store = PostgresStore::from_pool(pool.clone());
        Self::over(pool, store, keeper).await
    }
}

impl Shop<Sqlite, TempDir> {
    async fn sqlite() -> Self {
        let keeper = tempfile::tempdir().unwrap();
        let pool = file(&keeper, "shop.db").await;
        let store = SqliteStore::from_pool(pool.clone());
        Self::over(pool, store, keeper).await
    }
}

async fn file(folder: &TempDir, name: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(folder.path().join(name)).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_millis(300));
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap()
}

impl<D: Dialect, K> Shop<D, K>
where
    Self: Sql<D>,
{
    async fn over(pool: Pool<D>, store: idem_sqlx::SqlStore<D>, keeper: K) -> Self
    where
        idem_sqlx::SqlStore<D>: Store,
    {
        store.migrate().await.unwrap();
        let shop = Self { pool, idempotency: Idempotency::new(store), runs: Cell::new(0), keeper };
        let mut tx = shop.begin().await;
        Self::run(&mut tx, "CREATE TABLE effects (what TEXT)").await;
        tx.commit().await.unwrap();
        shop
    }

    fn once(&self, key: &str) -> Once {
        self.idempotency.once("ship", key)
    }

    async fn begin(&self) -> Transaction<'static, D> {
        self.pool.begin().await.unwrap()
    }

    /// Writes, and returns which run it is.
    async fn ship(&self, tx: &mut D::Connection) -> Result<String, Failure> {
        Self::run(tx, "INSERT INTO effects VALUES ('shipped')").await;
        self.runs.set(self.runs.get() + 1);
        Ok(format!("run {}", self.runs.get()))
    }

    /// A delivery from its transaction to its commit.
    async fn deliver(&self, once: Once) -> Result<String, Failure> {
        let mut tx = self.begin().await;
        let value = once.run_in(&mut tx, async |tx| self.ship(tx).await).await?;
        tx.commit().await.unwrap();
        Ok(value)
    }

    /// Commits a call under the key `a` that was dropped after it has shipped.
    async fn leave_unknown(&self) {
        let mut tx = self.begin().await;
        let (written, is_written) = oneshot::channel();
        let call = self.once("a").run_in(&mut tx, async |tx| {
            self.ship(tx).await?;
            written.send(()).unwrap();
            std::future::pending::<Result<String, Failure>>().await
        });
        tokio::select! {
            _ = call => panic!("it does not end"),
            written = is_written => written.unwrap(),
        }
        tx.commit().await.unwrap();
    }

    async fn effects(&self, what: &str) -> usize {
        let mut tx = self.begin().await;
        Self::count(&mut tx, &format!("SELECT count(*) FROM effects WHERE what = '{what}'")).await
    }

    async fn records(&self) -> usize {
        Self::count(&mut *self.begin().await, "SELECT count(*) FROM idempotency").await
    }
}

/// Statements over either database.
trait Sql<D: sqlx::Database> {
    async fn run(tx: &mut D::Connection, sql: &str);
    async fn count(tx: &mut D::Connection, sql: &str) -> usize;
}

macro_rules! sql {
    ($database:ty, $keeper:ty) => {
        impl Sql<$database> for Shop<$database, $keeper> {
            async fn run(tx: &mut <$database as sqlx::Database>::Connection, sql: &str) {
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
            }

            async fn count(tx: &mut <$database as sqlx::Database>::Connection, sql: &str) -> usize {
                let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *tx).await.unwrap();
                usize::try_from(count).unwrap()
            }
        }
    };
}

sql!(Postgres, Server);
sql!(Sqlite, TempDir);

/// Runs a check over either database.
macro_rules! over_both {
    ($($name:ident),*) => {$(
        mod $name {
            #[tokio::test]
            async fn over_postgres() {
                super::$name(crate::Shop::postgres().await).await;
            }

            #[tokio::test]
            async fn over_sqlite() {
                super::$name(crate::Shop::sqlite().await).await;
            }
        }
    )*};
}

over_both!(
    after_the_commit_the_recorded_value_is_returned,
    after_a_rollback_of_the_caller_the_key_is_free,
    an_error_undoes_what_the_function_wrote_and_nothing_else,
    a_panic_undoes_what_the_function_wrote_and_is_resumed,
    a_key_that_comes_twice_in_one_transaction_runs_once,
    another_message_under_the_same_id_is_a_mismatch,
    a_future_that_was_dropped_and_committed_leaves_an_unknown_outcome,
    wherever_a_call_is_dropped_it_takes_effect_once_at_most,
    a_function_that_ends_the_transaction_leaves_an_unknown_outcome,
    a_nested_transaction_of_the_function_is_a_savepoint,
    a_nested_transaction_of_the_caller_that_is_rolled_back_frees_the_key,
    beyond_the_maximum_of_executions_nothing_is_done,
    a_key_that_was_used_without_a_transaction_is_the_same_key
);

async fn after_the_commit_the_recorded_value_is_returned<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    for _ in 0..3 {
        assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    }
    assert_eq!(shop.deliver(shop.once("b")).await.unwrap(), "run 2");
    assert_eq!((shop.effects("shipped").await, shop.runs.get()), (2, 2));
    let report = shop.once("a").inspect().await.unwrap().unwrap();
    assert_eq!(report.content().unwrap(), &b"J\"run 1\""[..], "it is as `run` records it");
}

async fn after_a_rollback_of_the_caller_the_key_is_free<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    for explicit in [true, false] {
        let mut tx = shop.begin().await;
        shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        if explicit {
            tx.rollback().await.unwrap();
        } else {
            drop(tx);
        }
        assert_eq!((shop.effects("shipped").await, shop.records().await), (0, 0));
    }
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 3");
    assert_eq!(shop.effects("shipped").await, 1);
}

async fn an_error_undoes_what_the_function_wrote_and_nothing_else<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
    let failing = async |tx: &mut D::Connection| -> Result<String, Failure> {
        shop.ship(tx).await?;
        Err(Failure::AsAsked)
    };
    for _ in 0..2 {
        assert!(matches!(shop.once("a").run_in(&mut tx, failing).await, Err(Failure::AsAsked)));
    }
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.effects("after").await, shop.effects("shipped").await), (1, 1, 0));
    assert_eq!(shop.records().await, 0);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 3");
}

async fn a_panic_undoes_what_the_function_wrote_and_is_resumed<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let panicking = async |tx: &mut D::Connection| -> Result<String, Failure> {
        shop.ship(tx).await?;
        panic!("as asked")
    };
    let call = shop.once("a").run_in(&mut tx, panicking);
    let panic = AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "as asked");
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("after").await, shop.effects("shipped").await, shop.records().await), (1, 0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
}

async fn a_key_that_comes_twice_in_one_transaction_runs_once<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    for key in ["a", "b", "a", "b"] {
        let value = shop.once(key).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        assert_eq!(value, if key == "a" { "run 1" } else { "run 2" });
    }
    let other = shop.once("a").fingerprint(&"other").run_in(&mut tx, async |tx| shop.ship(tx).await).await;
    assert!(matches!(other.unwrap_err().reason(), RefusalReason::Mismatch));
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.records().await), (2, 2));
}

async fn another_message_under_the_same_id_is_a_mismatch<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    assert_eq!(shop.deliver(shop.once("a").fingerprint(&"tea")).await.unwrap(), "run 1");
    let refused = shop.deliver(shop.once("a").fingerprint(&"coffee")).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::Mismatch), "{refused:?}");
    assert_eq!(shop.deliver(shop.once("a").fingerprint(&"tea")).await.unwrap(), "run 1");
}

async fn a_future_that_was_dropped_and_committed_leaves_an_unknown_outcome<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    shop.leave_unknown().await;
    for _ in 0..2 {
        let refused = shop.deliver(shop.once("a")).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{refused:?}");
    }
    assert_eq!(shop.deliver(shop.once("a").abandoned(Abandoned::Rerun)).await.unwrap(), "run 2");
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
}

async fn wherever_a_call_is_dropped_it_takes_effect_once_at_most<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut half_way = 0;
    let mut rounds = (0..).flat_map(|round| (0..12).map(move |polls| (round, polls)));
    // On a busy machine a reply is often there at once, and a call ends at its first poll.
    while let Some((round, polls)) = rounds.next()
        && (round < 2 || half_way < 3)
    {
        let commits = (round + polls) % 2 == 0;
        let (key, before) = (format!("{round} {polls} {commits}"), shop.effects("shipped").await);
        let mut tx = shop.begin().await;
        let mut call = Box::pin(shop.once(&key).run_in(&mut tx, async |tx| shop.ship(tx).await));
        let mut polled = 0;
        let ended = poll_fn(|cx| {
            polled += 1;
            if polled > polls { Poll::Ready(None) } else { call.as_mut().poll(cx).map(Some) }
        });
        half_way += usize::from(ended.await.is_none() && polls > 0);
        drop(call);
        if commits {
            tx.commit().await.unwrap()
        } else {
            tx.rollback().await.unwrap()
        }
        let (committed, runs) = (shop.effects("shipped").await - before, shop.runs.get());
        let retry = shop.deliver(shop.once(&key)).await;
        let (reran, effects) = (shop.runs.get() - runs, shop.effects("shipped").await - before);
        assert!(effects <= 1 && (committed == 0 || reran == 0), "{key}: {committed}, {reran}, {retry:?}");
        assert!(commits || (retry.is_ok() && effects == 1), "{key}: {retry:?}");
    }
}

async fn a_function_that_ends_the_transaction_leaves_an_unknown_outcome<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    for (end, ships) in [("COMMIT", true), ("COMMIT", false), ("ROLLBACK", true)] {
        for fails in [false, true] {
            let key = format!("{end} {ships} {fails}");
            let mut tx = shop.begin().await;
            let misusing = async |tx: &mut D::Connection| {
                let value = if ships { shop.ship(tx).await } else { Ok("nothing".to_owned()) };
                Shop::<D, K>::run(tx, end).await;
                if fails { Err(Failure::AsAsked) } else { value }
            };
            let refused = shop.once(&key).run_in(&mut tx, misusing).await.unwrap_err();
            assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{key}: {refused:?}");
            // There is nothing to end.
            drop(tx);
            let retry = shop.deliver(shop.once(&key)).await.unwrap_err();
            assert!(matches!(retry.reason(), RefusalReason::OutcomeUnknown), "{key}: {retry:?}");
        }
    }
}

async fn a_nested_transaction_of_the_function_is_a_savepoint<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let nested = async |tx: &mut D::Connection| -> Result<String, Failure> {
        let mut kept = Connection::begin(&mut *tx).await.unwrap();
        shop.ship(&mut kept).await?;
        kept.commit().await.unwrap();
        let mut dropped = Connection::begin(&mut *tx).await.unwrap();
        shop.ship(&mut dropped).await
    };
    assert_eq!(shop.once("a").run_in(&mut tx, nested).await.unwrap(), "run 2");
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.records().await), (1, 1));
}

async fn a_nested_transaction_of_the_caller_that_is_rolled_back_frees_the_key<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let mut undone = tx.begin().await.unwrap();
    assert_eq!(shop.once("a").run_in(&mut undone, async |tx| shop.ship(tx).await).await.unwrap(), "run 1");
    undone.rollback().await.unwrap();
    if !D::HAS_ONE_WRITER {
        assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2", "at once");
    }
    tx.commit().await.unwrap();
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
    assert_eq!((shop.effects("shipped").await, shop.records().await), (1, 1));
}

async fn beyond_the_maximum_of_executions_nothing_is_done<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let store = shop.once("a").store::<idem_sqlx::SqlStore<D>>().unwrap().clone();
    let none = Idempotency::builder(store).max_executions(0).build();
    let refused = shop.deliver(none.once("ship", "a")).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::TooManyExecutions), "{refused:?}");
    assert_eq!((shop.runs.get(), shop.records().await), (0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

async fn a_key_that_was_used_without_a_transaction_is_the_same_key<D: Dialect, K>(shop: Shop<D, K>)
where
    Shop<D, K>: Sql<D>,
{
    let value = async || Ok::<_, Failure>("without".to_owned());
    assert_eq!(shop.once("a").run(value).await.unwrap(), "without");
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "without");
    assert_eq!(shop.deliver(shop.once("b")).await.unwrap(), "run 1");
    assert_eq!(shop.once("b").run(value).await.unwrap(), "run 1");
}

/// A second process over the same database.
async fn other_process(shop: &Shop<Postgres, Server>) -> Idempotency {
    let pool = PgPoolOptions::new().max_connections(2).connect(&shop.keeper.url()).await.unwrap();
    Idempotency::new(PostgresStore::from_pool(pool))
}

#[tokio::test]
async fn a_key_in_an_open_transaction_is_in_flight_to_other_processes() {
    let shop = Shop::postgres().await;
    let other = other_process(&shop).await;
    let mut tx = shop.begin().await;
    shop.once("a").fingerprint(&"tea").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    for idempotency in [&shop.idempotency, &other] {
        let tea = || idempotency.once("ship", "a").fingerprint(&"tea");
        let refused = shop.deliver(tea()).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
        let refused = shop.deliver(idempotency.once("ship", "a").fingerprint(&"coffee")).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::Mismatch), "{refused:?}");
        let refused = tea().run(async || Ok::<_, Failure>(String::new())).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    }
    tx.commit().await.unwrap();
    assert_eq!(shop.deliver(other.once("ship", "a").fingerprint(&"tea")).await.unwrap(), "run 1");
    assert_eq!(shop.effects("shipped").await, 1);
}

/// A take-over would wait for the end of the other one, however long that takes.
#[tokio::test]
async fn an_unknown_outcome_that_another_delivery_takes_over_is_in_flight() {
    let shop = Shop::postgres().await;
    shop.leave_unknown().await;
    let reruns = |then: WhenInFlight| shop.once("a").abandoned(Abandoned::Rerun).in_flight(then);
    let mut tx = shop.begin().await;
    // It has written before the call.
    sqlx::raw_sql("SELECT pg_current_xact_id()").execute(&mut *tx).await.unwrap();
    let first = reruns(WhenInFlight::Reject).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(5), shop.deliver(reruns(WhenInFlight::Reject)));
    let refused = second.await.expect("at once").unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    for leased in [shop.once("a"), reruns(WhenInFlight::Reject)] {
        let refused = leased.run(async || Ok::<_, Failure>(String::new())).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    }
    let waits = shop.deliver(reruns(WhenInFlight::Wait(Duration::from_secs(60))));
    let (second, ()) = tokio::join!(waits, async { tx.commit().await.unwrap() });
    assert_eq!((first.as_str(), second.unwrap().as_str()), ("run 2", "run 2"));
}

/// A retry that is refused holds the lock of the key for a moment. Without it a take-over would not be seen: others would wait for its
/// row, however long it runs, or be told that the outcome is unknown.
#[tokio::test]
async fn a_take_over_waits_for_the_lock_of_a_retry_that_is_refused() {
    let shop = Shop::postgres().await;
    shop.leave_unknown().await;
    let reruns = || shop.once("a").abandoned(Abandoned::Rerun).in_flight(WhenInFlight::Reject);
    let mut tx = shop.begin().await;
    reruns().run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    let lock =
        "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE mode = 'ExclusiveLock' AND objsubid = 1";
    let lock: i64 = shop.keeper.sql(lock).trim().parse().unwrap();
    tx.rollback().await.unwrap();

    let mut refused = shop.begin().await;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock).execute(&mut *refused).await.unwrap();
    let mut tx = shop.begin().await;
    let early = reruns().run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(early.reason().is_retryable(), "{early:?}");
    refused.rollback().await.unwrap();
    assert_eq!(reruns().run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap(), "run 3");
    for other in [reruns(), shop.once("a")] {
        let second = tokio::time::timeout(Duration::from_secs(5), shop.deliver(other));
        let refused = second.await.expect("at once").unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
    }
    tx.commit().await.unwrap();
    assert_eq!(shop.deliver(reruns()).await.unwrap(), "run 3");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_leaves_the_transaction_as_it_was() {
    let shop = Shop::postgres().await;
    shop.deliver(shop.once("a")).await.unwrap();
    shop.keeper.sql("UPDATE idempotency SET record = '\\x00'");
    let mut tx = shop.begin().await;
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(!refused.reason().is_retryable(), "{refused:?}");
    assert_eq!(shop.keeper.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").trim(), "0");
    tx.commit().await.unwrap();
    assert_eq!(shop.runs.get(), 1);
}

/// Between the two looks of a delivery, at the row and at who holds the key, the owner ends, and a message with other contents has the
/// key for a moment, until it finds the record.
#[tokio::test]
async fn a_record_that_came_before_another_message_had_the_key_is_no_mismatch() {
    let shop = Shop::postgres().await;
    let proxy = Proxy::to(shop.keeper.port()).await;
    let pool = PgPool::connect(&shop.keeper.url_through(proxy.port())).await.unwrap();
    let other = Idempotency::new(PostgresStore::from_pool(pool));
    let tea = |idempotency: &Idempotency, key: &str| idempotency.once("ship", key).fingerprint(&"tea");
    let mut tx = shop.begin().await;
    tea(&shop.idempotency, "a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    let locks = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE mode = 'ExclusiveLock' AND objsubid = 1 \
        UNION ALL SELECT classid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2";
    let locks: Vec<i64> = shop.keeper.sql(locks).lines().map(|lock| lock.parse().unwrap()).collect();
    let value = async || Ok::<_, Failure>("without".to_owned());
    // Both statements are prepared now.
    let refused = tea(&other, "a").run(value).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");

    proxy.set(Direction::ToClient, Fault::Hold);
    let retry = tokio::spawn(tea(&other, "a").run(value));
    proxy.seen(Direction::ToClient).await;
    tx.commit().await.unwrap();
    let mut coffee = shop.begin().await;
    let take = "SELECT pg_advisory_xact_lock($1), pg_advisory_xact_lock_shared($2, 0)";
    let take = sqlx::query(take).bind(locks[0]).bind(i32::try_from(locks[1]).unwrap());
    take.execute(&mut *coffee).await.unwrap();
    proxy.heal();
    assert_eq!(retry.await.unwrap().unwrap(), "run 1");
}

#[tokio::test]
async fn a_delivery_waits_for_another_one_as_declared() {
    let shop = Shop::postgres().await;
    let other = other_process(&shop).await;
    for commits in [true, false] {
        let key = commits.to_string();
        let mut tx = shop.begin().await;
        let first = shop.once(&key).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        let waits = |time| other.once("ship", &key).in_flight(WhenInFlight::Wait(time));
        let refused = shop.deliver(waits(Duration::from_millis(50))).await.unwrap_err();
        assert!(matches!(refused.reason(), RefusalReason::InFlight), "{refused:?}");
        let end = async {
            // The other one has looked who holds the key, and waits.
            let waiting =
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query NOT LIKE 'BEGIN%'";
            shop.keeper.wait_until(waiting, "2").await;
            if commits { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
        };
        let (second, ()) = tokio::join!(shop.deliver(waits(Duration::from_secs(60))), end);
        assert_eq!(second.unwrap() == first, commits);
    }
    assert_eq!(shop.effects("shipped").await, 2);
}

/// SQLite rolls the whole transaction back if a statement of one row finds no room.
#[tokio::test]
async fn a_first_write_that_finds_no_room_in_sqlite_leaves_the_key_free() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::raw_sql("INSERT INTO effects VALUES ('before'); PRAGMA max_page_count = 50").execute(&mut *tx).await.unwrap();
    let write = async |tx: &mut SqliteConnection| {
        let large = sqlx::raw_sql("INSERT INTO effects VALUES (zeroblob(1000000))").execute(tx).await;
        large.map(|_| String::new()).map_err(|_| Failure::AsAsked)
    };
    let failed = shop.once("a").run_in(&mut tx, write).await.unwrap_err();
    assert!(matches!(failed, Failure::AsAsked), "{failed:?}");
    sqlx::raw_sql("PRAGMA max_page_count = 1000000").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.records().await), (0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

/// SQLite does so too if the disk refuses a write.
#[tokio::test]
async fn a_claim_or_a_record_whose_failure_rolls_everything_back_leaves_the_key_free() {
    let shop = Shop::sqlite().await;
    for event in ["INSERT", "UPDATE OF record"] {
        let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let trigger = format!(
            "INSERT INTO effects VALUES ('before'); CREATE TRIGGER no_room BEFORE {event} ON idempotency \
             BEGIN SELECT raise(ROLLBACK, 'no room'); END"
        );
        Shop::<Sqlite, TempDir>::run(&mut tx, &trigger).await;
        let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
        assert!(refused.reason().is_retryable() && refused.chain().contains("no room"), "{event}: {refused:?}");
        // What the caller does after that is in a transaction.
        shop.ship(&mut tx).await.unwrap();
        tx.rollback().await.unwrap();
        assert_eq!((shop.effects("before").await, shop.effects("shipped").await), (0, 0), "{event}");
        assert_eq!(shop.records().await, 0, "{event}");
    }
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 4");
}

#[tokio::test]
async fn a_record_that_the_database_refuses_is_undone_alone_and_no_fault_of_the_function() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let trigger = "INSERT INTO effects VALUES ('before'); CREATE TRIGGER no_room BEFORE UPDATE OF record ON idempotency \
         BEGIN SELECT raise(ABORT, 'no room'); END";
    Shop::<Sqlite, TempDir>::run(&mut tx, trigger).await;
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(refused.reason().is_retryable() && refused.chain().contains("no room"), "{refused:?}");
    Shop::<Sqlite, TempDir>::run(&mut tx, "DROP TRIGGER no_room").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.effects("shipped").await, shop.records().await), (1, 0, 0));
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
}

#[tokio::test]
async fn in_sqlite_the_begin_of_another_transaction_waits() {
    let shop = Shop::sqlite().await;
    let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
    // Without IMMEDIATE the call waits, as long as the connection does.
    let refused =
        shop.deliver(shop.once("a").in_flight(WhenInFlight::Wait(Duration::from_secs(60)))).await.unwrap_err();
    assert!(refused.reason().is_retryable(), "{refused:?}");
    let second = async {
        let mut tx = shop.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await
    };
    let (second, first) = tokio::join!(second, tx.commit());
    first.unwrap();
    assert_eq!(second.unwrap(), "run 1");
}

#[tokio::test]
async fn many_deliveries_at_once_run_once() {
    let shop = Shop::postgres().await;
    let pool = PgPoolOptions::new().max_connections(16).connect(&shop.keeper.url()).await.unwrap();
    let idempotency = Idempotency::new(PostgresStore::from_pool(pool.clone()));
    for round in 0..5 {
        let all = (0..16).map(|_| {
            let (pool, idempotency) = (pool.clone(), idempotency.clone());
            // The future is `Send`, whatever the function borrows.
            tokio::spawn(async move {
                let what = "shipped".to_owned();
                let mut tx = pool.begin().await.unwrap();
                let once =
                    idempotency.once("ship", round.to_string()).in_flight(WhenInFlight::Wait(Duration::from_secs(60)));
                let number = once
                    .run_in(&mut tx, async |tx| {
                        let insert = "INSERT INTO effects VALUES ($1) RETURNING ctid::text";
                        let row: String = sqlx::query_scalar(insert).bind(&what).fetch_one(&mut *tx).await.unwrap();
                        Ok::<_, Failure>(row)
                    })
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
                number
            })
        });
        let all: Vec<_> = futures_util::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
        assert!(all.iter().all(|value| *value == all[0]), "{all:?}");
        assert_eq!(shop.effects("shipped").await, round + 1);
    }
}

/// Takes messages off the queue until it is empty, each in the transaction that ships its order. Returns the values.
async fn consume(pool: &PgPool, idempotency: &Idempotency) -> Vec<(String, String)> {
    let take = "DELETE FROM messages WHERE id = (SELECT id FROM messages ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) \
        RETURNING order_id";
    let mut values = Vec::new();
    loop {
        let mut tx = pool.begin().await.unwrap();
        let Some(order) = sqlx::query_scalar::<_, String>(take).fetch_optional(&mut *tx).await.unwrap() else {
            return values;
        };
        let once = idempotency.once("ship", &order).in_flight(WhenInFlight::Wait(Duration::from_secs(60)));
        let ship = async |tx: &mut PgConnection| {
            let insert = sqlx::query_scalar("INSERT INTO effects VALUES ($1) RETURNING ctid::text");
            Ok::<String, Failure>(insert.bind(&order).fetch_one(&mut *tx).await.unwrap())
        };
        let value = once.run_in(&mut tx, ship).await.unwrap();
        tx.commit().await.unwrap();
        values.push((order, value));
    }
}

#[tokio::test]
async fn consumers_that_skip_locked_messages_ship_each_order_once() {
    const ORDERS: usize = 10;
    let shop = Shop::postgres().await;
    shop.keeper.sql(&format!(
        "CREATE TABLE messages (id serial PRIMARY KEY, order_id text NOT NULL); \
         INSERT INTO messages (order_id) SELECT (number % {ORDERS})::text FROM generate_series(1, {}) AS number",
        3 * ORDERS
    ));
    let consume = || consume(&shop.pool, &shop.idempotency);
    let values = futures_util::future::join3(consume(), consume(), consume()).await;
    let mut values = [values.0, values.1, values.2].concat();
    assert_eq!(values.len(), 3 * ORDERS, "each message is consumed once");
    values.sort();
    values.dedup();
    assert_eq!(values.len(), ORDERS, "each order has one parcel: {values:?}");
    assert_eq!(shop.keeper.sql("SELECT count(*) FROM effects").trim(), ORDERS.to_string());
}

#[tokio::test]
async fn a_success_over_an_aborted_transaction_is_undone() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('before')").await;
    let failing = async |tx: &mut PgConnection| {
        let value = shop.ship(tx).await;
        sqlx::raw_sql("SELECT * FROM nothing").execute(&mut *tx).await.unwrap_err();
        value
    };
    let failed = shop.once("a").run_in(&mut tx, failing).await.unwrap_err();
    assert!(failed.reason().is_retryable() && failed.chain().contains("return the error"), "{}", failed.chain());
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("before").await, shop.effects("shipped").await, shop.records().await), (1, 0, 0));
}

#[tokio::test]
async fn a_key_that_was_committed_after_the_snapshot_is_an_error_that_a_retry_resolves() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    Shop::<Postgres, Server>::run(&mut tx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(Shop::<Postgres, Server>::count(&mut tx, "SELECT count(*) FROM effects").await, 0);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    let failed = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(failed.reason().is_retryable(), "{failed:?}");
    drop(tx);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

#[tokio::test]
async fn a_transaction_that_had_failed_before_is_an_error_that_says_so() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    sqlx::raw_sql("SELECT * FROM nothing").execute(&mut *tx).await.unwrap_err();
    let failed = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(failed.reason().is_retryable() && failed.chain().contains("is aborted"), "{}", failed.chain());
    assert_eq!(shop.runs.get(), 0);
}

/// Asserts that the engine is refused, says what to mount, and leaves the transaction as it was.
async fn refuses<D: Dialect, K>(shop: &Shop<D, K>, idempotency: &Idempotency, name: &str)
where
    Shop<D, K>: Sql<D>,
{
    let mut tx = shop.begin().await;
    let refused = idempotency.once("ship", "a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(refused.reason().is_retryable() && refused.chain().contains(name), "{}", refused.chain());
    Shop::<D, K>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.runs.get(), shop.records().await), (0, 0));
}

#[tokio::test]
async fn a_store_in_another_database_is_an_error_that_says_what_to_mount() {
    let (postgres, sqlite) = (Shop::postgres().await, Shop::sqlite().await);
    refuses(&postgres, &Idempotency::in_memory(), "a `PostgresStore` over the same database").await;
    refuses(&postgres, &sqlite.idempotency, "a `PostgresStore` over the same database").await;
    refuses(&sqlite, &postgres.idempotency, "a `SqliteStore` over the same database").await;

    // With a separate table, and in the transaction's database without one.
    let another = Shop::postgres().await;
    refuses(&postgres, &another.idempotency, "a `PostgresStore` over the same database").await;
    postgres.keeper.sql("CREATE DATABASE other");
    let url = postgres.keeper.url().replace("/postgres?", "/other?");
    let other = PgPool::connect(&url).await.unwrap();
    PostgresStore::from_pool(other.clone()).migrate().await.unwrap();
    let other = Idempotency::new(PostgresStore::from_pool(other));
    refuses(&postgres, &other, "a `PostgresStore` over the same database").await;
    postgres.keeper.sql("CREATE DATABASE empty");
    let mut tx = PgPool::connect(&url.replace("/other?", "/empty?")).await.unwrap().begin().await.unwrap();
    let call = postgres.once("a").run_in(&mut tx, async |tx| postgres.ship(tx).await);
    let refused = call.await.unwrap_err().chain();
    assert!(refused.contains("a `PostgresStore` over the same database"), "no table: {refused}");

    let pool = file(&sqlite.keeper, "other.db").await;
    let store = SqliteStore::from_pool(pool);
    refuses(&sqlite, &Idempotency::new(store), "a `SqliteStore` over the same database").await;
    assert_eq!(sqlite.deliver(sqlite.once("a")).await.unwrap(), "run 1");
    assert_eq!(postgres.deliver(postgres.once("a")).await.unwrap(), "run 1");
}

#[tokio::test]
async fn a_store_behind_a_cache_is_in_its_database() {
    let mut shop = Shop::postgres().await;
    let store = PostgresStore::from_pool(shop.pool.clone());
    shop.idempotency = Idempotency::new(CachedStore::new(store));
    for _ in 0..2 {
        assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    }
    assert_eq!(shop.effects("shipped").await, 1);
}

#[tokio::test]
async fn a_server_that_was_restarted_is_the_same_database() {
    let mut shop = Shop::postgres().await;
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    shop.keeper.restart().await;
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
    assert_eq!(shop.deliver(shop.once("b")).await.unwrap(), "run 2");
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_leaves_the_transaction_as_it_was() {
    let shop = Shop::postgres().await;
    let nowhere = shop.pool.connect_options().as_ref().clone().socket("/nowhere");
    let pool = PgPoolOptions::new().connect_lazy_with(nowhere);
    let store = PostgresStore::builder().timeout(Duration::from_millis(200)).with_pool(pool).unwrap();
    refuses(&shop, &Idempotency::new(store), "no connection to the database").await;
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 1");
}

#[tokio::test]
async fn after_the_connection_broke_an_error_is_that_of_the_function_and_the_key_is_free() {
    let shop = Shop::postgres().await;
    let mut tx = shop.begin().await;
    let call = shop.once("a").run_in(&mut tx, async |tx| {
        shop.ship(tx).await?;
        sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut *tx).await.unwrap_err();
        Err::<String, _>(Failure::AsAsked)
    });
    assert!(matches!(call.await, Err(Failure::AsAsked)));
    drop(tx);
    assert_eq!(shop.deliver(shop.once("a")).await.unwrap(), "run 2");
    assert_eq!(shop.effects("shipped").await, 1);
}

/// What `run_in` did before it refused would keep others from the key until the caller ends its transaction.
#[tokio::test]
async fn a_call_that_is_refused_as_unknown_keeps_nothing() {
    let shop = Shop::postgres().await;
    shop.leave_unknown().await;

    let mut tx = shop.begin().await;
    let refused = shop.once("a").run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::OutcomeUnknown), "{refused:?}");
    let other = shop.once("a").fingerprint(&"another").run_in(&mut tx, async |tx| shop.ship(tx).await).await;
    let refused = other.unwrap_err();
    assert!(matches!(refused.reason(), RefusalReason::Mismatch), "{refused:?}");
    let other = other_process(&shop).await.once("ship", "a");
    assert!(other.forget().await.unwrap());
    assert_eq!(shop.deliver(other).await.unwrap(), "run 2");
    Shop::<Postgres, Server>::run(&mut tx, "INSERT INTO effects VALUES ('after')").await;
    tx.commit().await.unwrap();
    assert_eq!((shop.effects("shipped").await, shop.effects("after").await), (2, 1));
}

#[tokio::test]
async fn settings_of_the_callers_session_do_not_make_it_another_database() {
    let shop = Shop::postgres().await;
    for setting in ["TIME ZONE 'Asia/Kolkata'", "datestyle = 'German'", "bytea_output = 'escape'"] {
        let mut tx = shop.begin().await;
        Shop::<Postgres, Server>::run(&mut tx, &format!("SET LOCAL {setting}")).await;
        for _ in 0..2 {
            shop.once(setting).run_in(&mut tx, async |tx| shop.ship(tx).await).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    assert_eq!(shop.effects("shipped").await, 3);
}

//! A consumer and its database.

use std::cell::Cell;
use std::error::Error;
use std::time::Duration;

use idem_runtime::{Idempotency, Once, RefusalReason, Store};
use idem_sqlx::{Dialect, OnceExt, PostgresStore, SqliteStore};
use idem_testkit::postgres::Postgres as Server;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Pool, Postgres, Sqlite, SqlitePool, Transaction};
use tempfile::TempDir;
use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) enum Failure {
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
    pub(crate) fn reason(&self) -> &RefusalReason {
        match self {
            Self::Refused(reason) => reason,
            Self::AsAsked => panic!("the function ran"),
        }
    }

    /// The text of all causes.
    pub(crate) fn chain(&self) -> String {
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
pub(crate) struct Shop<D: sqlx::Database, K> {
    pub(crate) pool: Pool<D>,
    pub(crate) idempotency: Idempotency,
    pub(crate) runs: Cell<usize>,
    pub(crate) keeper: K,
}

impl Shop<Postgres, Server> {
    pub(crate) async fn postgres() -> Self {
        let keeper = Server::quick().await;
        let pool = PgPoolOptions::new().max_connections(4).connect(&keeper.url()).await.unwrap();
        let store = PostgresStore::from_pool(pool.clone());
        Self::over(pool, store, keeper).await
    }
}

impl Shop<Sqlite, TempDir> {
    pub(crate) async fn sqlite() -> Self {
        let keeper = tempfile::tempdir().unwrap();
        let pool = file(&keeper, "shop.db").await;
        let store = SqliteStore::from_pool(pool.clone());
        Self::over(pool, store, keeper).await
    }
}

pub(crate) async fn file(folder: &TempDir, name: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(folder.path().join(name)).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_millis(300));
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await.unwrap()
}

impl<D: Dialect, K> Shop<D, K>
where
    Self: Sql<D>,
{
    pub(crate) async fn over(pool: Pool<D>, store: idem_sqlx::SqlStore<D>, keeper: K) -> Self
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

    pub(crate) fn once(&self, key: &str) -> Once {
        self.idempotency.once("ship", key)
    }

    pub(crate) async fn begin(&self) -> Transaction<'static, D> {
        self.pool.begin().await.unwrap()
    }

    /// Writes, and returns which run it is.
    pub(crate) async fn ship(&self, tx: &mut D::Connection) -> Result<String, Failure> {
        Self::run(tx, "INSERT INTO effects VALUES ('shipped')").await;
        self.runs.set(self.runs.get() + 1);
        Ok(format!("run {}", self.runs.get()))
    }

    /// A delivery from its transaction to its commit.
    pub(crate) async fn deliver(&self, once: Once) -> Result<String, Failure> {
        let mut tx = self.begin().await;
        let value = once.run_in(&mut tx, async |tx| self.ship(tx).await).await?;
        tx.commit().await.unwrap();
        Ok(value)
    }

    /// Commits a call under the key `a` that was dropped after it has shipped.
    pub(crate) async fn leave_unknown(&self) {
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

    pub(crate) async fn effects(&self, what: &str) -> usize {
        let mut tx = self.begin().await;
        Self::count(&mut tx, &format!("SELECT count(*) FROM effects WHERE what = '{what}'")).await
    }

    pub(crate) async fn records(&self) -> usize {
        Self::count(&mut *self.begin().await, "SELECT count(*) FROM idempotency").await
    }
}

/// Statements over either database.
pub(crate) trait Sql<D: sqlx::Database> {
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
                super::$name(crate::shop::Shop::postgres().await).await;
            }

            #[tokio::test]
            async fn over_sqlite() {
                super::$name(crate::shop::Shop::sqlite().await).await;
            }
        }
    )*};
}

pub(crate) use over_both;

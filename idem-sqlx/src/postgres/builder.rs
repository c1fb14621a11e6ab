//! Opening a store.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool, Postgres};
use tokio::time::Instant;

use super::statements::{channel, statements};
use super::{Location, PostgresStore, url};
use crate::errors::{ConnectError, Problem, check_timeout};
use crate::execute::{Executor, lock_wait};
use crate::hosts::{Hosts, OptionsFrom};
use crate::names;
use crate::pool::Pool;
use crate::store::SqlStore;

/// Sets a [`PostgresStore`] up.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use idem_sqlx::PostgresStore;
///
/// let store = PostgresStore::builder()
///     .schema("shop")
///     .table("idempotency")
///     .max_connections(20)
///     .timeout(Duration::from_secs(2))
///     .connect("postgres://app@localhost/shop")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct PostgresStoreBuilder {
    schema: String,
    table: String,
    max_connections: usize,
    idle_timeout: Duration,
    timeout: Duration,
    cleanup_batch: u32,
    count_replays: bool,
}

impl PostgresStoreBuilder {
    pub(super) fn new() -> Self {
        Self {
            schema: "public".into(),
            table: "idempotency".into(),
            max_connections: 10,
            idle_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(4),
            cleanup_batch: 250,
            count_replays: false,
        }
    }

    /// Sets the schema of the table: 1 to 40 of `a-z`, `0-9` and `_`, and no digit first. Default: `public`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Sets the name of the table, which has the same form. Default: `idempotency`.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// Sets how many connections are open for steps at most. One more is open while a request waits for a claim to end, and one while a
    /// statement that timed out is cancelled. Default: 10.
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets how long a connection may be idle before it is closed. Some proxies, such as PgBouncer with session pooling, lend a connection
    /// to one client at a time. Other clients then cannot use an idle connection until it is closed. Default: 30 seconds.
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets how long one step may take, including the wait for a connection and further tries. Keep it below 5 seconds, after which the
    /// engine gives a step up. More than 0, and an hour at most. Default: 4 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many rows the cleanup deletes at once, in one transaction. Default: 250.
    pub fn cleanup_batch(mut self, rows: u32) -> Self {
        self.cleanup_batch = rows;
        self
    }

    /// Sets whether replays are counted, for [`inspect`](idem_runtime::Idempotency::inspect). Each then costs a write that its request does
    /// not wait for; many replays of one record are written at once. A count that fails, or is under way when the process ends, is lost.
    /// Default: `false`.
    pub fn count_replays(mut self, count_replays: bool) -> Self {
        self.count_replays = count_replays;
        self
    }

    /// Opens the store in the database at `url`, which may name [several hosts](PostgresStore#several-hosts). The table need not exist
    /// yet.
    ///
    /// # Errors
    /// A name or a setting is not valid, the URL is not understood, or no connection could be made. If the URL names several hosts, the
    /// error says why for each of them.
    pub async fn connect(self, url: &str) -> Result<PostgresStore, ConnectError> {
        self.open(url::hosts(url)?).await
    }

    /// Opens the store with options of `sqlx`, for what a URL cannot say: a socket, certificates, a password from elsewhere.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn connect_with(self, options: PgConnectOptions) -> Result<PostgresStore, ConnectError> {
        self.open(vec![options]).await
    }

    async fn open(self, hosts: Vec<PgConnectOptions>) -> Result<PostgresStore, ConnectError> {
        self.check()?;
        let timeout = self.timeout;
        let store = self.build(OptionsFrom::Hosts(hosts));
        match store.executor().pool.acquire(Instant::now() + timeout, timeout).await {
            Ok(connection) => connection.put_back(),
            Err(Problem::Refused(error) | Problem::Unreachable { source: Some(error), .. }) => {
                return Err(ConnectError::Connection(error));
            }
            Err(Problem::Setting(what)) => return Err(ConnectError::Setting(what)),
            Err(_) => return Err(ConnectError::TimedOut(timeout)),
        }
        Ok(store)
    }

    /// Makes a store in the database of `pool`, which is the pool of the handlers: see [`PostgresStore::from_pool`]. No connection
    /// is made yet.
    ///
    /// # Errors
    /// A name or a setting is not valid.
    pub fn with_pool(self, pool: PgPool) -> Result<PostgresStore, ConnectError> {
        self.check()?;
        Ok(self.build(OptionsFrom::Pool(pool)))
    }

    fn check(&self) -> Result<(), ConnectError> {
        names::check(&self.schema)?;
        names::check(&self.table)?;
        check_timeout(self.timeout)?;
        if self.max_connections == 0 || self.cleanup_batch == 0 {
            return Err(ConnectError::Setting("`max_connections` and `cleanup_batch` must be more than 0"));
        }
        Ok(())
    }

    pub(super) fn build(self, options_from: OptionsFrom<Postgres>) -> PostgresStore {
        // These override what the caller set. Without them a claim that was acknowledged could be lost in a crash, or every loser
        // of a race would get an error.
        let settings = [
            ("synchronous_commit", "on".to_owned()),
            ("default_transaction_isolation", "read committed".to_owned()),
            ("statement_timeout", lock_wait(self.timeout).as_millis().max(1).to_string()),
        ];
        let with_settings =
            move |options: PgConnectOptions| options.options(settings.clone()).disable_statement_logging();
        let hosts = Arc::new(Hosts::new(options_from, with_settings));
        let channel = channel(&self.schema, &self.table);
        let location = Location { schema: self.schema, table: self.table, hosts: Arc::clone(&hosts), channel };
        let table = location.quoted("");
        let executor = Executor {
            statements: statements(&location),
            pool: Pool::new(Arc::clone(&hosts), self.max_connections, Some(self.idle_timeout)),
            readers: None,
            table,
            timeout: self.timeout,
        };
        SqlStore::new(location, executor, self.cleanup_batch, self.count_replays, hosts.pool())
    }
}

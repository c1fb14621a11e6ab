//! Opening a store.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::remote::jitter;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Sqlite, SqlitePool};
use tokio::time::{Instant, sleep};

use super::statements::statements;
use super::{Location, NEEDS_A_FILE, SqliteStore, file};
use crate::dialect::sealed::Dialect;
use crate::errors::{ConnectError, Problem, check_timeout};
use crate::execute::{Executor, lock_wait};
use crate::hosts::{Hosts, OptionsFrom};
use crate::names;
use crate::pool::Pool;
use crate::store::SqlStore;

/// The size of a page in a new file, which [`SqliteStoreBuilder::max_bytes`] is counted in.
const PAGE: u64 = 4096;

/// Sets a [`SqliteStore`] up.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use idem_sqlx::SqliteStore;
///
/// let store = SqliteStore::builder()
///     .max_bytes(1024 * 1024 * 1024)
///     .timeout(Duration::from_secs(2))
///     .open("idempotency.db")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `open` is called"]
pub struct SqliteStoreBuilder {
    table: String,
    max_readers: usize,
    timeout: Duration,
    cleanup_batch: u32,
    count_replays: bool,
    max_bytes: Option<u64>,
}

impl SqliteStoreBuilder {
    pub(super) fn new() -> Self {
        Self {
            table: "idempotency".into(),
            max_readers: 4,
            timeout: Duration::from_secs(4),
            cleanup_batch: 250,
            count_replays: false,
            max_bytes: None,
        }
    }

    /// Sets the name of the table: 1 to 40 of `a-z`, `0-9` and `_`, and no digit first. Default: `idempotency`.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// Sets how many connections read at most. One more writes. Default: 4.
    pub fn max_readers(mut self, max_readers: usize) -> Self {
        self.max_readers = max_readers;
        self
    }

    /// Sets how long one step may take, including the wait for others that write. Keep it below 5 seconds, after which the engine gives a
    /// step up. More than 0, and an hour at most. Default: 4 seconds.
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

    /// Sets how many bytes the file may have at most, without its WAL. At the limit new keys are refused
    /// ([`StoreError::Full`](idem_runtime::StoreError::Full)). A response for which there is no room is sent, and its retry is refused.
    /// Space that the cleanup frees is used again. It is counted in pages of 4096 bytes, as a new file has them. Default: what the disk
    /// has.
    pub fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = Some(max_bytes);
        self
    }

    /// Opens the store in the file at `path`, which is created if it does not exist, for its owner alone (mode 0600). The table need
    /// not exist yet.
    ///
    /// # Errors
    /// A name or a setting is not valid, or the file could not be opened or created, is not an SQLite database, or is mounted
    /// without its folder.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<SqliteStore, ConnectError> {
        let path = path.as_ref();
        if path.to_str().is_some_and(|path| path.starts_with("sqlite:")) {
            return Err(ConnectError::Setting(
                "`open` takes the path of a file, and this is a URL; give it to `connect`",
            ));
        }
        self.open_with(SqliteConnectOptions::new().filename(path), true).await
    }

    /// Opens the store in the file that a URL of sqlx names: `sqlite:idempotency.db?mode=rwc`, or `sqlite:///var/lib/shop/idempotency.db`.
    /// Without `mode=rwc` the file must exist.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and if the URL is not understood or names a database in memory.
    pub async fn connect(self, url: &str) -> Result<SqliteStore, ConnectError> {
        if !url.starts_with("sqlite:") {
            return Err(ConnectError::Url(sqlx::Error::Configuration("it is not one of SQLite".into())));
        }
        let options = SqliteConnectOptions::from_str(url).map_err(ConnectError::Url)?;
        let (database, parameters) = url.split_once('?').unwrap_or((url, ""));
        let has = |wanted| parameters.split('&').any(|parameter| parameter == wanted);
        // sqlx does not tell from the options whether they are of a database in memory.
        let in_memory = database.ends_with(":memory:") || has("mode=memory");
        let options = if in_memory { options.filename(":memory:") } else { options };
        self.open_with(options, has("mode=rwc")).await
    }

    async fn open_with(self, options: SqliteConnectOptions, creates: bool) -> Result<SqliteStore, ConnectError> {
        self.check()?;
        let path = options.get_filename();
        if path.as_os_str().is_empty() || path == Path::new(":memory:") {
            return Err(ConnectError::Setting(NEEDS_A_FILE));
        }
        if file::is_mounted_alone(path) {
            let what = "the file is mounted without its folder, so its WAL is not where the next container looks for it, and \
                        records would be lost; mount the folder";
            return Err(ConnectError::Setting(what));
        }
        if creates {
            file::create(path);
        }
        let options = options.create_if_missing(creates).journal_mode(SqliteJournalMode::Wal);
        let store = self.build(OptionsFrom::Hosts(vec![options]));
        first_connection(store.executor()).await?;
        Ok(store)
    }

    /// Makes a store in the database of `pool`, which is the pool of the handlers: see [`SqliteStore::from_pool`]. No connection is
    /// made yet.
    ///
    /// # Errors
    /// A name or a setting is not valid.
    pub fn with_pool(self, pool: SqlitePool) -> Result<SqliteStore, ConnectError> {
        self.check()?;
        Ok(self.build(OptionsFrom::Pool(pool)))
    }

    fn check(&self) -> Result<(), ConnectError> {
        names::check(&self.table)?;
        check_timeout(self.timeout)?;
        if self.max_readers == 0 || self.cleanup_batch == 0 || self.max_bytes.is_some_and(|max| max < PAGE) {
            let what = "`max_readers` and `cleanup_batch` must be more than 0, and `max_bytes` at least a page, 4096";
            return Err(ConnectError::Setting(what));
        }
        Ok(())
    }

    pub(super) fn build(self, options_from: OptionsFrom<Sqlite>) -> SqliteStore {
        let (busy_timeout, max_pages) = (lock_wait(self.timeout), self.max_bytes.map(|max_bytes| max_bytes / PAGE));
        let with_settings = move |options: SqliteConnectOptions| {
            let options = options
                // In a cache that they shared, one that reads would wait for one that writes.
                .shared_cache(false)
                // Without WAL, `FULL` leaves a commit to the next sync of the folder.
                .synchronous(SqliteSynchronous::Extra)
                .busy_timeout(busy_timeout)
                // What is deleted is overwritten in the file.
                .pragma("secure_delete", "on")
                .disable_statement_logging();
            match max_pages {
                Some(max_pages) => options.pragma("max_page_count", max_pages.to_string()),
                None => options,
            }
        };
        let table = format!("\"{}\"", self.table);
        let hosts = Arc::new(Hosts::new(options_from, with_settings));
        let executor = Executor {
            statements: statements(&table),
            pool: Pool::new(Arc::clone(&hosts), 1, None),
            readers: Some(Pool::new(Arc::clone(&hosts), self.max_readers, None)),
            table,
            timeout: self.timeout,
        };
        let location = Location { table: self.table, hosts: Arc::clone(&hosts) };
        SqlStore::new(location, executor, self.cleanup_batch, self.count_replays, hosts.pool())
    }
}

/// Makes the file and puts it into WAL mode. If several processes do that at once, SQLite refuses all but one without
/// regard to its timeout, so they try again.
async fn first_connection(executor: &Executor<Sqlite>) -> Result<(), ConnectError> {
    let until = Instant::now() + executor.timeout;
    loop {
        match executor.pool.acquire(until, executor.timeout).await {
            Ok(connection) => {
                connection.put_back();
                return Ok(());
            }
            Err(Problem::Refused(error)) => match Sqlite::problem(error, &executor.table) {
                Problem::Busy(_) if Instant::now() < until => sleep(jitter(Duration::from_millis(20))).await,
                Problem::Busy(error) | Problem::Refused(error) | Problem::Full(error) | Problem::Broken(error) => {
                    return Err(ConnectError::Connection(error));
                }
                _ => {
                    let what = "the file is read-only; let this process write to it and to its folder";
                    return Err(ConnectError::Setting(what));
                }
            },
            Err(_) => return Err(ConnectError::TimedOut(executor.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_cannot_work_is_refused() {
        let builder = SqliteStoreBuilder::new;
        for refused in [builder().max_readers(0), builder().cleanup_batch(0), builder().max_bytes(PAGE - 1)] {
            assert!(matches!(refused.check(), Err(ConnectError::Setting(_))), "{refused:?}");
        }
        builder().max_readers(1).cleanup_batch(1).max_bytes(PAGE).check().unwrap();
    }
}

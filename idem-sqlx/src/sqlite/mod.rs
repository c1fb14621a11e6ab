//! The store in SQLite.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sqlx::Sqlite;

use crate::claim::SqlClaim;
use crate::errors::ConnectError;
use crate::hosts::{Hosts, OptionsFrom};
use crate::store::SqlStore;

mod builder;
mod dialect;
mod file;
mod migrations;
mod statements;

pub use builder::SqliteStoreBuilder;

const NEEDS_A_FILE: &str = "an SQLite store needs a file: in memory each of its connections has another database; to keep claims in \
                            memory, use `MemoryStore`";

/// Claims and records in a table of an SQLite database, shared by the processes of one machine.
///
/// [`SqlStore`] has the methods, and says how it works.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use idem_runtime::Idempotency;
/// use idem_sqlx::SqliteStore;
///
/// let store = SqliteStore::open("idempotency.db").await?;
/// store.migrate().await?;
/// tokio::spawn(store.cleanup());
/// let idempotency = Idempotency::new(store);
/// # Ok(())
/// # }
/// ```
///
/// # How it works
///
/// The file is in WAL mode with `synchronous = EXTRA`: what was acknowledged is on the disk. With `from_pool` the pool decides about WAL
/// mode. A process writes over one connection, one statement at a time, and processes take turns; those that only read do not wait for
/// those that write.
///
/// Waiters in the process of the owner are woken when its claim ends; others poll, at least twice a second.
///
/// # Time
///
/// All processes read one clock, the machine's wall clock, and SQLite reads it in the statement that judges or writes a time. If the clock
/// is set back, leases and TTLs become longer by the same amount. Then retries are refused for longer, and nothing runs twice. If it is set
/// forward, they become shorter: a record may expire early, and a claim whose owner is alive may look abandoned until its next renewal. So
/// let the clock be slewed, as NTP daemons do, and not stepped. For claims, a suspension of the machine is such a step.
///
/// # The file
///
/// It must be on a local disk, since WAL needs shared memory, and must not be copied while it is in use, except by
/// SQLite's own means. Its folder must exist. Beside it SQLite keeps what was written last (`-wal`), so a container must get
/// the folder and not the file alone: on Linux a file that is mounted alone is refused. Containers of one machine may share it.
/// Open it under one name: processes that open it through a second hard link have another `-wal`, and damage the file.
/// Stop all processes before the file is deleted, moved or replaced: those that have it open go on with the old one, and a handler
/// may run once for each of the two.
///
/// A file that the store creates is for its owner alone (mode 0600). What is deleted is overwritten in it (`secure_delete`); in the
/// WAL it stays until that is written again from its start, or the last process closes the file.
pub type SqliteStore = SqlStore<Sqlite>;

/// A claim in a [`SqliteStore`].
pub type SqliteClaim = SqlClaim<Sqlite>;

/// Where the table is.
pub struct Location {
    table: String,
    /// For a connection outside the pools: one that migrates.
    hosts: Arc<Hosts<Sqlite>>,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" in {}", self.table, self.hosts.last().get_filename().display())
    }
}

impl SqlStore<Sqlite> {
    /// Opens a store in the file that a URL of sqlx names, such as `sqlite:idempotency.db?mode=rwc`, with the default settings.
    ///
    /// # Errors
    /// The URL is not understood or names a database in memory, or the file could not be opened or created, or is not an SQLite
    /// database.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::builder().connect(url).await
    }

    /// Opens a store in the file at `path`, which is created if it does not exist, with the default settings.
    ///
    /// # Errors
    /// The file could not be opened or created, or is not an SQLite database.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::builder().open(path).await
    }

    /// Makes a store in the database of `pool`, which is the pool of the handlers, with the default settings. With such a store a handler
    /// can have an argument `Tx<Sqlite>` (feature `axum`), whose transaction is in this pool: one at a time, since SQLite has one writer.
    /// The database must be a file: [`migrate`](Self::migrate) refuses one in memory.
    ///
    /// For everything else the store opens connections with the options that the pool has then, but with `synchronous = EXTRA` and without
    /// a shared cache. No connection is made yet.
    ///
    /// Set `journal_mode(SqliteJournalMode::Wal)` in the options of the pool, as [`open`](Self::open) does. With a rollback journal, the
    /// default of SQLite, a transaction that only reads keeps others from committing. Meanwhile requests with a key wait, replays
    /// included, and after the [`timeout`](SqliteStoreBuilder::timeout) they are refused with 503.
    ///
    /// Some options of the pool do not go with a `Tx`:
    ///
    /// - An attached database in WAL mode is committed by itself. If the process or the machine dies in the commit, what a handler wrote
    ///   there may be missing although the record is there, or the other way round. So keep what a `Tx` writes in the file of the store.
    /// - With `journal_mode = OFF` SQLite cannot roll back, so what a handler wrote stays although it failed, and is written again by a
    ///   retry.
    /// - With `journal_mode = MEMORY` a process that dies in a commit may leave a damaged file.
    /// - With `synchronous = NORMAL` or `OFF`, or with `FULL` and no WAL, the last commits may be lost if the machine loses its power: what handlers wrote, together with
    ///   their records, so that a retry runs again.
    /// - With `locking_mode = EXCLUSIVE` the pool keeps the store's own connections out, and all requests with a key get 503.
    pub fn from_pool(pool: sqlx::SqlitePool) -> Self {
        Self::builder().build(OptionsFrom::Pool(pool))
    }

    /// Returns a builder, to change the default settings.
    pub fn builder() -> SqliteStoreBuilder {
        SqliteStoreBuilder::new()
    }
}

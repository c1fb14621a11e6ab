//! The store in SQLite.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{Begin, Claim, Clock, Duties, Fingerprint, Found, Record, StorageKey, Store, StoreError, Terms};
use sqlx::sqlite::SqliteConnectOptions;

use self::database::Sqlite;
use crate::claim::CoreClaim;
use crate::core::{Core, FOR_EVER};
use crate::errors::{ConnectError, MigrateError};

mod builder;
mod database;
mod migrations;
mod statements;

pub use builder::SqliteStoreBuilder;

/// Claims and records in a table of an SQLite database, shared by the processes of one machine.
///
/// Call [`migrate`](Self::migrate) once before the first request, and spawn [`cleanup`](Self::cleanup) in at least one
/// process. Clones share the connections.
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
/// The file is in WAL mode with `synchronous = FULL`: what was acknowledged is on the disk. A process writes over one
/// connection, one statement at a time, and processes take turns; those that only look do not wait for those that
/// write. Each change is one statement, which changes a row only while it has the owner token of the claim, 16 random
/// bytes.
///
/// A claim lives for its lease and is renewed while the body runs. When the lease is over it is abandoned: a retry with the
/// same fingerprint is refused, or takes it over if the policy says so. It stays so for the TTL, counted from the end
/// of the lease. An owner that was only late goes on if nobody has taken its claim over.
///
/// A `begin` whose answer is lost, or that is dropped half-way, may have claimed the key for nobody. Such a claim is given
/// back in the background, for as long as its lease could last.
/// [`Idempotency::drain`](idem_runtime::Idempotency::drain) waits for that. If the process exits before it is done,
/// the key is in flight until the lease is over, and then its outcome is unknown for the TTL, although no body started.
///
/// Waiters in the process of the owner are told when its claim ends; others ask again, at least twice a second.
///
/// # Time
///
/// All processes read one clock, the machine's wall clock, and SQLite reads it in the statement that judges or writes a
/// time. If the clock is set back, leases and TTLs last longer by as much: more is refused, and nothing runs twice. If it
/// is set forward they last shorter by as much: a record may be gone early, and a claim whose owner is alive may look
/// abandoned until its next renewal. So let the clock be slewed, as NTP daemons do, and not stepped. A suspended machine
/// is such a step for its claims.
///
/// # The file
///
/// It must be on a local disk, since WAL needs shared memory, and must not be copied while it is in use, other than by
/// SQLite's own means. Its folder must be there.
#[derive(Clone)]
pub struct SqliteStore {
    core: Arc<Core<Sqlite>>,
    shared: Arc<Shared>,
}

/// What is SQLite's alone.
struct Shared {
    path: PathBuf,
    table: String,
    /// For a connection that is not lent: one that migrates.
    options: SqliteConnectOptions,
}

impl SqliteStore {
    /// A store in the file at `path`, which is created if it is not there, with the default settings.
    ///
    /// # Errors
    /// The file could not be opened or created, or is no SQLite database.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::builder().open(path).await
    }

    /// A store with settings of your own.
    pub fn builder() -> SqliteStoreBuilder {
        SqliteStoreBuilder::new()
    }

    /// Creates the table, or brings them up to date. Does nothing where that is done, and may run in many
    /// processes at once. The statements are in the crate's folder `migrations/sqlite`.
    ///
    /// # Errors
    /// Nothing was changed, unless the error says that it is unknown.
    ///
    /// # Cancel safety
    /// The transaction is rolled back, unless it was about to be committed. It takes a minute at most, and may be
    /// called again.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        migrations::run(&self.shared).await
    }

    /// Deletes what has expired, about once a minute and in batches, for as long as the future is polled. Spawn it; abort
    /// the task to stop it. Several processes share the work. Without it the store is right, but the table grows.
    ///
    /// A request waits for one batch at most.
    pub fn cleanup(&self) -> impl Future<Output = Infallible> + Send + use<> {
        Arc::clone(&self.core).cleanup()
    }

    /// Deletes what has expired, now, and says how many rows that was: records after their TTL, and claims that were
    /// abandoned for as long.
    ///
    /// # Errors
    /// The database refused or did not answer; some batches may have been deleted.
    ///
    /// # Cancel safety
    /// What was deleted stays deleted; the next cleanup goes on.
    pub async fn clean_once(&self) -> Result<u64, StoreError> {
        self.core.clean_once().await
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { path, table, .. } = &*self.shared;
        f.debug_struct("SqliteStore").field("path", path).field("table", table).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    type Claim = SqliteClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<SqliteClaim>, StoreError> {
        self.begin_on_terms(key, fingerprint, &Terms::new(lease, FOR_EVER)).await
    }

    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<SqliteClaim>, StoreError> {
        Ok(match self.core.begin(key, fingerprint, terms).await? {
            Begin::Claimed(claim) => Begin::Claimed(SqliteClaim(claim)),
            Begin::Abandoned(claim) => Begin::Abandoned(SqliteClaim(claim)),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.core.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.core.forget(key).await
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<Found>, StoreError> {
        self.core.inspect(key).await
    }

    /// Waits until each claim that nobody heard of is given back, or its lease is over.
    async fn drained(&self) {
        self.core.orphans.drained().await;
    }

    /// The database judges expiry, in the statement that claims; leases must be renewed.
    fn attach(&self, _clock: &Arc<dyn Clock>) -> Duties {
        Duties { expire: false, renew: true }
    }
}

/// A claim in a [`SqliteStore`]. Dropped without an end, it is abandoned when its lease is over.
pub struct SqliteClaim(CoreClaim<Sqlite>);

impl Claim for SqliteClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.0.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.0.complete(&record, ttl).await
    }

    async fn release(self) -> Result<(), StoreError> {
        self.0.release().await
    }

    fn twin(&self) -> Option<Self> {
        Some(Self(self.0.twin()))
    }
}

impl fmt::Debug for SqliteClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

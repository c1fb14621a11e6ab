//! The store in PostgreSQL.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{Begin, Claim, Clock, Duties, Fingerprint, Found, Record, StorageKey, Store, StoreError, Terms};
use sqlx::postgres::PgConnectOptions;

use self::database::Postgres;
use crate::claim::CoreClaim;
use crate::core::{Core, FOR_EVER};
use crate::errors::{ConnectError, MigrateError};

mod builder;
mod database;
mod migrations;
mod statements;
mod waiting;

pub use builder::PostgresStoreBuilder;

/// Claims and records in a table of a PostgreSQL database (12 or later), shared by any number of processes.
///
/// Call [`migrate`](Self::migrate) once before the first request, and spawn [`cleanup`](Self::cleanup) in at least one
/// process. Clones share the connections.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use idem_runtime::Idempotency;
/// use idem_sqlx::PostgresStore;
///
/// let store = PostgresStore::connect("postgres://app@localhost/shop").await?;
/// store.migrate().await?;
/// tokio::spawn(store.cleanup());
/// let idempotency = Idempotency::new(store);
/// # Ok(())
/// # }
/// ```
///
/// # How it works
///
/// Each step is one statement and one round trip: `begin`, whatever stands under the key, `renew`, `complete` and
/// `release`. Each changes a row only while it has the owner token of the claim, 16 random bytes, so that a statement whose
/// answer was lost is simply sent again. All times are the database's own (`clock_timestamp()`), and the clocks of the
/// processes do not matter.
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
/// Waiters ask again, at least twice a second, and sooner where a `NOTIFY` tells them. The one connection that listens
/// is opened when somebody waits, and closed when nobody has for a while.
///
/// # What the server must do
///
/// The store's own connections set `synchronous_commit = on` and READ COMMITTED at their start, whatever the database's
/// defaults are. Behind PgBouncer, use session pooling, or transaction pooling with `max_prepared_statements` above 0 and
/// `options` among `ignore_startup_parameters`; then give the two settings to the role with `ALTER ROLE .. SET`. There,
/// nobody is told and waiters ask. TLS needs one of the `tls-*` features of `sqlx`.
#[derive(Clone)]
pub struct PostgresStore {
    core: Arc<Core<Postgres>>,
    shared: Arc<Shared>,
}

/// What is PostgreSQL's alone.
struct Shared {
    names: Names,
    /// For connections that are not lent: one that migrates, one that listens.
    options: PgConnectOptions,
    channel: String,
}

struct Names {
    schema: String,
    table: String,
}

impl Names {
    /// The table, or what belongs to it, as SQL names it.
    fn quoted(&self, suffix: &str) -> String {
        format!("\"{}\".\"{}{suffix}\"", self.schema, self.table)
    }
}

impl PostgresStore {
    /// A store in the database at `url`, such as `postgres://user:password@host/database`, with the default settings.
    ///
    /// # Errors
    /// The URL is not understood, or no connection could be made.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::builder().connect(url).await
    }

    /// A store with settings of your own.
    pub fn builder() -> PostgresStoreBuilder {
        PostgresStoreBuilder::new()
    }

    /// Creates the schema and the table, or brings them up to date. Does nothing where that is done, and may run in many
    /// processes at once. The statements are in the crate's folder `migrations/postgres`.
    ///
    /// # Errors
    /// Nothing was changed, unless the error says that it is unknown.
    ///
    /// # Cancel safety
    /// The transaction is rolled back, unless its commit was already on its way. It takes a minute at most, and may be
    /// called again.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        migrations::run(&self.shared).await
    }

    /// Deletes what has expired, about once a minute and in batches, for as long as the future is polled. Spawn it; abort
    /// the task to stop it. Several processes share the work. Without it the store is right, but the table grows.
    ///
    /// Rows that somebody works on are skipped, so no request waits for the cleanup.
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

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("table", &self.shared.names.quoted("")).finish_non_exhaustive()
    }
}

impl Store for PostgresStore {
    type Claim = PostgresClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<PostgresClaim>, StoreError> {
        self.begin_on_terms(key, fingerprint, &Terms::new(lease, FOR_EVER)).await
    }

    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<PostgresClaim>, StoreError> {
        Ok(match self.core.begin(key, fingerprint, terms).await? {
            Begin::Claimed(claim) => Begin::Claimed(PostgresClaim(claim)),
            Begin::Abandoned(claim) => Begin::Abandoned(PostgresClaim(claim)),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.shared.listen(&self.core.waiters);
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

/// A claim in a [`PostgresStore`]. Dropped without an end, it is abandoned when its lease is over.
pub struct PostgresClaim(CoreClaim<Postgres>);

impl Claim for PostgresClaim {
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

impl fmt::Debug for PostgresClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! A store whose table follows the clock of a history.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Record, StorageKey, Store, StoreCapabilities, StoreError,
    StoredEntry, Timestamp,
};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_testkit::reference::LEASE;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;

/// In a history moments are a nanosecond apart, and a database needs longer than that. So every span is stretched: a third
/// of a lease becomes a million seconds, and a nanosecond a thousand.
const THIRD: Duration = Duration::from_secs(1_000_000);
const TICK: Duration = Duration::from_secs(1_000);
/// Each deadline is this much earlier, so that "at this moment" does not depend on how long the test has been running.
const SOONER: Duration = Duration::from_secs(100);
/// Longer than a moment of either database.
const A_MOMENT: Duration = Duration::from_millis(10);

fn stretched(span: Duration) -> Duration {
    let (third, nanos) = ((LEASE / 3).as_nanos(), span.as_nanos());
    let thirds = (nanos + third / 2) / third;
    let whole = THIRD * u32::try_from(thirds).unwrap();
    let ticks = |nanos| TICK * u32::try_from(nanos).unwrap();
    if thirds * third > nanos { whole - ticks(thirds * third - nanos) } else { whole + ticks(nanos - thirds * third) }
}

fn deadline(span: Duration) -> Duration {
    stretched(span).saturating_sub(SOONER)
}

/// A connection to the table beside the store's own.
pub(crate) enum Beside {
    Postgres(Mutex<PgConnection>),
    Sqlite(Mutex<SqliteConnection>),
}

impl Beside {
    pub(crate) async fn postgres(url: &str) -> Self {
        Self::Postgres(Mutex::new(PgConnection::connect(url).await.unwrap()))
    }

    pub(crate) async fn sqlite(file: &Path) -> Self {
        Self::Sqlite(Mutex::new(SqliteConnectOptions::new().filename(file).connect().await.unwrap()))
    }

    pub(crate) async fn empty(&self) {
        const EMPTY: &str = "DELETE FROM idempotency";
        match self {
            Self::Postgres(connection) => {
                sqlx::query(EMPTY).execute(&mut *connection.lock().await).await.unwrap();
            }
            Self::Sqlite(connection) => {
                sqlx::query(EMPTY).execute(&mut *connection.lock().await).await.unwrap();
            }
        }
    }

    /// Lets time go on, by moving all deadlines back.
    async fn shift(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap();
        match self {
            Self::Postgres(connection) => {
                let shift = "UPDATE idempotency SET lease_until = lease_until - $1 * interval '1 millisecond', \
                             expires_at = expires_at - $1 * interval '1 millisecond'";
                sqlx::query(shift).bind(millis).execute(&mut *connection.lock().await).await.unwrap();
            }
            Self::Sqlite(connection) => {
                let shift = "UPDATE idempotency SET lease_until = lease_until - ?1, expires_at = expires_at - ?1";
                sqlx::query(shift).bind(millis).execute(&mut *connection.lock().await).await.unwrap();
            }
        }
    }
}

/// Moves the deadlines in the table as the clock of the history goes on.
pub(crate) struct Time {
    beside: Beside,
    clock: OnceLock<Arc<dyn Clock>>,
    /// Up to when the table has followed the clock.
    shown: Mutex<Option<Timestamp>>,
}

impl Time {
    async fn follow(&self) {
        let mut shown = self.shown.lock().await;
        let now = self.clock.get().expect("an attached store").now();
        let since = now.as_nanos() - shown.unwrap_or(now).as_nanos();
        if since > 0 {
            self.beside.shift(stretched(Duration::from_nanos(since))).await;
        }
        *shown = Some(now);
    }
}

pub(crate) type Stretched<S> = Intercept<S, Time>;

pub(crate) fn stretch<S: Store>(store: S, beside: Beside) -> Stretched<S> {
    Intercept::new(store, Time { beside, clock: OnceLock::new(), shown: Mutex::new(None) })
}

/// In the reference an abandoned claim stays, so the TTL of every claim is as long as can be.
impl<S: Store> Hooks<S> for Time {
    async fn begin(
        &self,
        store: &S,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<S::Claim>, StoreError> {
        self.follow().await;
        store.begin(key, fingerprint, &BeginOptions::new(deadline(options.lease), Duration::MAX)).await
    }

    async fn forget(&self, store: &S, key: &StorageKey) -> Result<bool, StoreError> {
        self.follow().await;
        store.forget(key).await
    }

    async fn inspect(&self, store: &S, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.follow().await;
        store.inspect(key).await
    }

    fn attach(&self, store: &S, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = self.clock.set(Arc::clone(clock));
        // From the first moment on.
        *self.shown.try_lock().expect("no history has begun") = Some(clock.now());
        store.attach(clock)
    }

    async fn renew(&self, claim: &mut S::Claim, lease: Duration) -> Result<(), StoreError> {
        self.follow().await;
        claim.renew(deadline(lease)).await
    }

    async fn complete(&self, claim: S::Claim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.follow().await;
        let completed = claim.complete(record, deadline(ttl)).await;
        if deadline(ttl).is_zero() {
            self.beside.shift(A_MOMENT).await;
        }
        completed
    }

    async fn release(&self, claim: S::Claim) -> Result<(), StoreError> {
        self.follow().await;
        claim.release().await
    }
}

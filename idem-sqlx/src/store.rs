//! The store: the steps over one table.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::remote::{Listener, OwnerToken, UnconfirmedClaims, Waiters, jitter};
use idem_runtime::{
    Begin, BeginOptions, Clock, ExecutionInfo, Fingerprint, KeyPage, KeyState, StorageKey, Store, StoreCapabilities,
    StoreError, StoredEntry,
};
use tokio::time::sleep;

use crate::claim::{ClaimKind, ClaimReleaser, LeasedClaim, SqlClaim, announce};
use crate::cleanup;
use crate::dialect::{Dialect, MAX_TTL, Value, retention};
use crate::errors::{DatabaseError, MigrateError, Problem, Step};
use crate::execute::{Executor, key_value};
use crate::rows::{self, BeginRow};
use crate::table::Table;
use crate::transaction::{MAX_ATTEMPTS, OpenTransaction, Transactions};

/// How many rows are read for a page of unknown outcomes.
const MAX_SCANNED: i64 = 1000;

/// How long waiters wait for a claim whose lease the database could not be asked for.
const ERROR_PAUSE: Duration = Duration::from_millis(500);
/// Of a claim that is a transaction: it has no lease.
const NO_LIMIT: Duration = Duration::MAX;

/// Claims and records in a table of an SQL database: a [`PostgresStore`](crate::PostgresStore) or a
/// [`SqliteStore`](crate::SqliteStore), whose pages say what is particular to each.
///
/// Call [`migrate`](Self::migrate) once before the first request, and spawn [`cleanup`](Self::cleanup) in at least one
/// process. A clone is cheap and shares the connections.
///
/// # How it works
///
/// Each change is one statement, which changes a row only if it has the owner token of the claim, 16 random bytes. So a statement whose
/// reply was lost is sent again. Each statement compares times with the clock of the database, and with no other.
///
/// A claim lives for its lease and is renewed while the handler runs. When the lease expires it is abandoned: a retry with the
/// same fingerprint is refused, or takes it over if the policy says so. It stays for the TTL, counted from the end of the lease.
/// An owner that was only late goes on, unless another request has taken its claim over.
///
/// A `begin` whose reply is lost, or that is dropped half-way, may leave an unconfirmed claim. It is released in the background, as soon as
/// the database replies, and [`Idempotency::drain`](idem_runtime::Idempotency::drain) waits for that. If the process exits earlier, the key
/// is in flight until the lease expires, and then its outcome is unknown for the TTL, although no handler started.
///
/// # Several runtimes
///
/// Several tokio runtimes may use one store, as long as each of them is driven until it is dropped. One that is kept and not driven any more,
/// such as a `current_thread` runtime between two calls of `block_on`, stops the tasks of the store in it: a claim that they would release
/// stays. A step in another runtime that gets one of its connections takes half of the builder's `timeout` before it gets a
/// different one. If such runtimes hold all connections, steps are refused (503) until one more connection is allowed, which is after the
/// `timeout` and three seconds. Open a second store for such a runtime.
pub struct SqlStore<D: Dialect> {
    inner: Arc<StoreInner<D>>,
}

struct StoreInner<D: Dialect> {
    location: Arc<D::Location>,
    table: Arc<Table<D>>,
    waiters: Arc<Waiters>,
    listener: Listener,
    unconfirmed: Arc<UnconfirmedClaims<ClaimReleaser<D>>>,
    cleanup_batch: u32,
    /// `None` if the store does not share the pool of the handlers.
    transactions: Option<Transactions<D>>,
}

impl<D: Dialect> SqlStore<D> {
    pub(crate) fn new(
        location: D::Location,
        executor: Executor<D>,
        cleanup_batch: u32,
        count_replays: bool,
        pool: Option<sqlx::Pool<D>>,
    ) -> Self {
        let (executor, waiters) = (Arc::new(executor), Arc::<Waiters>::default());
        let releaser = ClaimReleaser { executor: Arc::clone(&executor), waiters: Arc::clone(&waiters) };
        let inner = StoreInner {
            location: Arc::new(location),
            listener: Listener::default(),
            unconfirmed: Arc::new(UnconfirmedClaims::new(releaser)),
            table: Arc::new(Table::new(&executor, &waiters, count_replays, pool.clone())),
            cleanup_batch,
            waiters,
            transactions: pool.map(Transactions::new),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn table(&self) -> Arc<Table<D>> {
        Arc::clone(&self.inner.table)
    }

    pub(crate) fn executor(&self) -> &Arc<Executor<D>> {
        &self.inner.table.executor
    }

    #[cfg(all(test, feature = "postgres"))]
    pub(crate) fn location(&self) -> &D::Location {
        &self.inner.location
    }

    /// Creates the table, or brings it up to date. Does nothing if that is done, and may run in many processes at once, beside a
    /// version of the service that is running. A table of a later version is accepted if this version works with it.
    ///
    /// The statements are in the crate's folder `migrations`. If you run them by hand, write the names in place of `{table}` and
    /// `{index}`, and for PostgreSQL of `{claim}` and `{complete}`: two functions with the name of the table, followed by `_claim` and
    /// `_complete`. Name table and functions with their schema, since a handler may change the search path: `public.idempotency`,
    /// `public.idempotency_claim` and `public.idempotency_complete` by default. Then do not call this: it would try to create the table.
    /// As a command:
    ///
    /// ```console
    /// $ sed 's/{table}/public.idempotency/; s/{index}/idempotency_clean_after/; s/{claim}/public.idempotency_claim/; s/{complete}/public.idempotency_complete/' migrations/postgres/0001_table.sql | psql shop
    /// $ sed 's/{table}/idempotency/; s/{index}/idempotency_expires_at/' migrations/sqlite/0001_table.sql | sqlite3 idempotency.db
    /// ```
    ///
    /// In PostgreSQL it waits for a lock for 0.3 seconds and then lets others go on before it tries again: statements of the
    /// running version do not queue behind a long transaction.
    ///
    /// # Errors
    /// Nothing was changed, unless the error says that this is unknown.
    ///
    /// # Cancel safety
    /// The transaction is rolled back, unless it was about to be committed. It takes a minute at most, and may be called again.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        D::migrate(&self.inner.location).await
    }

    /// Deletes what has expired, about once a minute and in batches, as long as the future is polled. Spawn it; abort the task to
    /// stop it. Several processes share the work. Without it the store is correct, but the table grows.
    ///
    /// In PostgreSQL it skips rows that are locked, so no request waits for it. In SQLite a request waits for one batch at most.
    pub fn cleanup(&self) -> impl Future<Output = Infallible> + Send + use<D> {
        let inner = Arc::clone(&self.inner);
        async move { cleanup::run(&inner.table.executor, inner.cleanup_batch).await }
    }

    /// Deletes what has expired, now, and returns how many rows that was: records after their TTL, and claims that were
    /// abandoned for as long.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the database refused or did not reply; some batches may have been deleted.
    ///
    /// # Cancel safety
    /// What was deleted stays deleted; the next cleanup goes on.
    pub async fn clean_once(&self) -> Result<u64, StoreError> {
        Ok(cleanup::once(self.executor(), self.inner.cleanup_batch).await?)
    }

    /// Returns what a row means to a request.
    fn judge(&self, row: BeginRow, claim: LeasedClaim<D>, options: &BeginOptions) -> Begin<SqlClaim<D>> {
        let leased = |claim| SqlClaim(ClaimKind::Leased(claim));
        match row {
            BeginRow::Claimed => Begin::Claimed(leased(claim)),
            BeginRow::Record { owner, record } => {
                self.inner.table.count_replay(&claim.key, owner, &record, &claim.fingerprint);
                Begin::Completed(record)
            }
            BeginRow::Claim { owner, fingerprint, lease_has_expired: true } if fingerprint == claim.fingerprint => {
                Begin::Abandoned(leased(LeasedClaim {
                    previous_owner: Some(owner),
                    info: options.info.clone(),
                    ..claim
                }))
            }
            BeginRow::Claim { fingerprint, .. } => Begin::InFlight(fingerprint),
        }
    }

    /// Returns the time that is left of the lease of a claim in flight.
    async fn lease_left(&self, key: &StorageKey, sql: &Arc<str>) -> Result<Option<Duration>, DatabaseError> {
        let result = self.executor().read(Step::Wait, sql, &[key_value(key)]).await?;
        let Some(row) = result.rows.first() else {
            // Whether it has this fingerprint or another one does not matter.
            let holder = self.inner.table.holder(key, &Fingerprint::from_bytes([0; 32]), None).await?;
            return Ok(holder.map(|_| NO_LIMIT));
        };
        let left = rows::number::<D>(row).map_err(|problem| DatabaseError { step: Step::Wait, problem })?;
        // At least a moment: the lease may end within the unit that is counted.
        Ok(Some(Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1))))
    }
}

impl<D: Dialect> Store for SqlStore<D> {
    type Claim = SqlClaim<D>;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<SqlClaim<D>>, StoreError> {
        let StoreInner { table, waiters, transactions, .. } = &*self.inner;
        if let (Some(slot), Some(transactions)) = (&options.transaction, transactions)
            && slot.wants::<OpenTransaction<D>>()
        {
            return Ok(match transactions.begin(table, slot, key, fingerprint, options).await? {
                Begin::Claimed(claim) => Begin::Claimed(SqlClaim::of_transaction(claim)),
                Begin::Abandoned(claim) => Begin::Abandoned(SqlClaim::of_transaction(claim)),
                Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
                Begin::Completed(record) => Begin::Completed(record),
            });
        }
        // Their rows are not seen, and SQLite would wait for their end.
        if table.running.holder_of(key).is_some() {
            return Ok(table.begin_beside(key, fingerprint, options.info.as_ref()).await?);
        }
        let failed = |problem| DatabaseError { step: Step::Begin, problem };
        let &BeginOptions { lease, ttl, ref info, .. } = options;
        let executor = &table.executor;
        let owned_by = |owner| LeasedClaim {
            executor: Arc::clone(executor),
            waiters: Arc::clone(waiters),
            key: *key,
            fingerprint: *fingerprint,
            owner,
            previous_owner: None,
            info: None,
            ttl,
            maybe_released: Arc::default(),
            late_begin: None,
        };
        let owner = OwnerToken::random()?;
        let info = info.as_ref().map(ExecutionInfo::to_bytes);
        let guard = self.inner.unconfirmed.guard((*key, owner), lease);
        for _ in 0..MAX_ATTEMPTS {
            if executor.statements.looks_first {
                let values = [key_value(key), Value::Bytes(owner.as_bytes())];
                let result = executor.read(Step::Begin, &executor.statements.look, &values).await?;
                if let Some(row) = result.rows.first() {
                    let row = BeginRow::read::<D>(row, key).map_err(failed)?;
                    // A claim of an earlier try may still turn up and be released, so a new owner needs a token that differs.
                    let claim = owned_by(OwnerToken::random()?);
                    return Ok(self.judge(row, claim, options));
                }
            }
            let values = [
                key_value(key),
                Value::Bytes(owner.as_bytes()),
                Value::Bytes(fingerprint.as_bytes()),
                Value::Number(D::ticks(lease.min(MAX_TTL))),
                Value::Number(D::ticks(retention(lease, ttl))),
                Value::Nullable(info.as_deref()),
            ];
            let begin = &executor.statements.begin;
            let result = executor.execute_in_doubt(Step::Begin, begin, &values, guard.in_doubt()).await?;
            if let Some(row) = result.rows.first() {
                let mut claim = owned_by(owner);
                match BeginRow::read::<D>(row, key).map_err(failed)? {
                    BeginRow::Claimed => {
                        guard.confirm();
                        claim.late_begin = result.repeated.then(|| (Arc::clone(&self.inner.unconfirmed), lease));
                        return Ok(self.judge(BeginRow::Claimed, claim, options));
                    }
                    BeginRow::Claim { fingerprint: found, lease_has_expired: true, .. }
                        if found == *fingerprint && table.is_taken_over(key, None).await? =>
                    {
                        return Ok(Begin::InFlight(found));
                    }
                    row => {
                        if result.repeated {
                            // The first try may still turn up and be released, so a new owner needs a token that differs.
                            claim = owned_by(OwnerToken::random()?);
                        }
                        return Ok(self.judge(row, claim, options));
                    }
                }
            }
            if let Some(begun) = table.begin_beside_holder(key, fingerprint, options.info.as_ref()).await? {
                // An earlier try, whose reply did not come in time, may be what holds the key until its commit ends.
                if guard.in_doubt().get() && matches!(&begun, Begin::InFlight(found) if found == fingerprint) {
                    return Err(failed(Problem::TimedOut { waited: executor.timeout }).into());
                }
                return Ok(begun);
            }
            // Another statement won, and this one could not see its row. The next one will.
        }
        Err(failed(Problem::Contended).into())
    }

    /// Resolves when the claim under `key` has ended, or its lease. One of the requests that wait for it polls the database, and
    /// earlier if it is told to.
    async fn ended(&self, key: &StorageKey) {
        let StoreInner { location, table, waiters, listener, .. } = &*self.inner;
        let executor = &table.executor;
        let mut sql = &executor.statements.wait;
        // It may ask twice.
        let longest = executor.timeout.saturating_mul(2);
        let ask = || {
            D::ensure_listening(listener, location, waiters);
            let is_entered = self.inner.table.running.entered(key).is_some();
            let sql = if is_entered { sql } else { mem::replace(&mut sql, &executor.statements.poll) };
            async move {
                let left = if is_entered {
                    // The end of a transaction is woken for, but not that of what it waits for itself.
                    let row = self.inner.table.look(key).await;
                    row.map(|row| (!matches!(row, Some(BeginRow::Record { .. }))).then_some(NO_LIMIT))
                } else {
                    self.lease_left(key, sql).await
                };
                match left {
                    Ok(left) => left,
                    Err(error) => {
                        // `begin` will report the error. Not at once, or many waiters would keep the database busy with it.
                        tracing::debug!(%key, %error, "could not ask whether a claim has ended");
                        sleep(jitter(ERROR_PAUSE)).await;
                        None
                    }
                }
            }
        };
        waiters.ended(key, longest, ask).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let (executor, waiters, table) = (self.executor(), &self.inner.waiters, &self.inner.table);
        let mut forget = &executor.statements.forget;
        // A transaction that takes an abandoned claim over has locked its row for as long as its handler runs.
        if table.running.holder_of(key).is_some() {
            return Ok(false);
        }
        if let Some(unlocked) = &executor.statements.forget_unlocked
            && table.is_taken_over(key, None).await.map_err(|error| DatabaseError { step: Step::Forget, ..error })?
        {
            forget = unlocked;
        }
        let result = executor.execute(Step::Forget, forget, &[key_value(key)]).await?;
        if announce(executor, waiters, key, &result.rows) {
            return Ok(true);
        }
        if result.repeated {
            // The key is free, but it is not known whether the first try removed something.
            let problem = Problem::TimedOut { waited: executor.timeout };
            return Err(DatabaseError { step: Step::Forget, problem }.into());
        }
        Ok(false)
    }

    /// Reads with one `SELECT`. How often a record was replayed is known if the builder was told to count. A transaction that is the
    /// claim of its handler is seen only in its own process until it ends: to another one its key looks free.
    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        let (running, holds_key) =
            (self.inner.table.running.entry(key), self.inner.table.running.holder_of(key).is_some());
        let executor = self.executor();
        let result = executor.read(Step::Inspect, &executor.statements.inspect, &[key_value(key)]).await?;
        let Some(row) = result.rows.first() else { return Ok(running) };
        let entry = rows::stored_entry::<D>(row, key);
        let mut entry = entry.map_err(|problem| DatabaseError { step: Step::Inspect, problem })?;
        // A transaction may take over what is abandoned. To a record or another claim it is a retry.
        if let (KeyState::Abandoned(_), Some(running)) = (&entry.state, running.filter(|_| holds_key)) {
            return Ok(Some(running));
        }
        entry.replays = entry.replays.filter(|_| self.inner.table.replay_counter.is_some());
        Ok(Some(entry))
    }

    /// A page covers 1,000 rows.
    async fn inspect_unknown(&self, from: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, StoreError> {
        let executor = self.executor();
        let values = [Value::Bytes(from.map_or(&[], |from| from)), Value::Number(MAX_SCANNED)];
        let result = executor.read(Step::Inspect, &executor.statements.unknown, &values).await?;
        let (mut keys, mut next) = (Vec::new(), None);
        for row in &result.rows {
            let scanned = rows::scanned::<D>(row);
            let (key, entry) = scanned.map_err(|problem| DatabaseError { step: Step::Inspect, problem })?;
            next = Some(Bytes::copy_from_slice(key.as_bytes()));
            keys.extend(entry.map(|entry| (key, entry)));
        }
        Ok(KeyPage::new(keys, next))
    }

    /// A transaction that is the claim of its handler is not seen, and keeps it.
    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        if self.inner.table.running.holder_of(key).is_some() {
            return Ok(false);
        }
        let (executor, waiters) = (self.executor(), &self.inner.waiters);
        let owner = OwnerToken::random()?;
        let values = [key_value(key), Value::Bytes(owner.as_bytes())];
        let result = executor.execute(Step::Revoke, &executor.statements.revoke, &values).await?;
        waiters.wake(key);
        Ok(!result.rows.is_empty())
    }

    /// Waits until each unconfirmed claim is released.
    async fn drained(&self) {
        self.inner.unconfirmed.drained().await;
    }

    /// The database judges expiry, in the statement that claims; leases need renewal.
    fn attach(&self, _: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: false }
    }
}

impl<D: Dialect> Clone for SqlStore<D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<D: Dialect> fmt::Debug for SqlStore<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(D::STORE).field("location", &self.inner.location).finish_non_exhaustive()
    }
}

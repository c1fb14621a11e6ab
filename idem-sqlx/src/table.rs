//! What all claims in a table share: what runs its statements, and the queries that say who has a key.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idem_runtime::remote::{OwnerToken, Waiters};
use idem_runtime::{Begin, ExecutionInfo, Fingerprint, PolicyTag, Record, StorageKey};

use crate::dialect::{Dialect, NO_LEASE, Value, retention};
use crate::errors::{DatabaseError, Problem, Step};
use crate::execute::{Executor, key_value};
use crate::replay_count::ReplayCounter;
use crate::rows::{self, BeginRow, Holder};
use crate::running::Running;

/// The table of a store.
pub(crate) struct Table<D: Dialect> {
    pub(crate) executor: Arc<Executor<D>>,
    pub(crate) running: Arc<Running>,
    /// `None` if replays are not counted.
    pub(crate) replay_counter: Option<ReplayCounter<D>>,
    /// The pool of the handlers. `None` if the store does not share it.
    pool: Option<sqlx::Pool<D>>,
    /// What the [database](crate::dialect::sealed::Dialect::DATABASE) said of itself, once it was asked.
    database: Mutex<Option<Vec<u8>>>,
}

impl<D: Dialect> Table<D> {
    pub(crate) fn new(
        executor: &Arc<Executor<D>>,
        waiters: &Arc<Waiters>,
        count_replays: bool,
        pool: Option<sqlx::Pool<D>>,
    ) -> Self {
        Self {
            executor: Arc::clone(executor),
            running: Arc::new(Running::new(Arc::clone(waiters))),
            replay_counter: count_replays.then(|| ReplayCounter::new(Arc::clone(executor))),
            pool,
            database: Mutex::default(),
        }
    }

    /// Returns the session whose transaction holds the key.
    pub(crate) async fn holder(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        info: Option<&ExecutionInfo>,
    ) -> Result<Option<Holder>, DatabaseError> {
        let executor = &self.executor;
        let Some(holder) = &executor.statements.holder else { return Ok(None) };
        // No lock has these numbers.
        let [endpoint, policy] = policy_lock(key, info).unwrap_or([-1; 2]);
        let values =
            [key_value(key), Value::Bytes(fingerprint.as_bytes()), Value::Number(endpoint), Value::Number(policy)];
        let result = executor.read(Step::Begin, holder, &values).await?;
        let holder = result.rows.first().map(rows::holder::<D>).transpose();
        holder.map_err(|problem| DatabaseError { step: Step::Begin, problem })
    }

    /// Returns whether the table is in a database that says this of itself.
    pub(crate) async fn is_of_database(&self, database: &[u8]) -> Result<bool, DatabaseError> {
        let known = || self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if known().as_deref() == Some(database) {
            return Ok(true);
        }
        // It is asked again: the server may have been restarted.
        let result = self.executor.read(Step::Begin, &Arc::from(D::DATABASE), &[]).await?;
        let own = result.rows.first().map(|row| D::bytes(row, 0)).transpose();
        let own = own.map_err(|error| DatabaseError { step: Step::Begin, problem: Problem::Refused(error) })?;
        let own = own.flatten().unwrap_or_default();
        let is_same = own == database;
        *known() = Some(own);
        Ok(is_same)
    }

    /// Counts a replay, if replays are counted. A request with another fingerprint is refused, and is not a replay.
    pub(crate) fn count_replay(&self, key: &StorageKey, owner: OwnerToken, record: &Record, fingerprint: &Fingerprint) {
        if let Some(counter) = &self.replay_counter
            && record.fingerprint() == fingerprint
        {
            counter.count(*key, owner);
        }
    }

    /// Resolves when the pool of the handlers was closed.
    pub(crate) async fn pool_closed(&self) {
        match &self.pool {
            Some(pool) => pool.close_event().await,
            None => std::future::pending().await,
        }
    }

    /// Returns what a request gets if a transaction of another session holds its key. `None` if none does.
    pub(crate) async fn begin_beside_holder<C>(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        info: Option<&ExecutionInfo>,
    ) -> Result<Option<Begin<C>>, DatabaseError> {
        let Some(holder) = self.holder(key, fingerprint, info).await? else { return Ok(None) };
        // It may have the key since an owner with this fingerprint has ended, and find the record of that one.
        if holder.has_other_fingerprint
            && let Some(row) = self.look(key).await?
        {
            return Ok(Some(self.judge_without_claim(key, fingerprint, row)));
        }
        Ok(Some(holder.as_begin(fingerprint, info)))
    }

    /// Returns whether another session takes the abandoned claim of a key over: a second take-over would wait for its end. One that is
    /// refused has the key for a moment as well, and writes nothing.
    pub(crate) async fn is_taken_over(&self, key: &StorageKey, session: Option<i64>) -> Result<bool, DatabaseError> {
        let holder = self.holder(key, &Fingerprint::from_bytes([0; 32]), None).await?;
        Ok(holder.is_some_and(|holder| holder.has_written && Some(holder.session) != session))
    }

    /// Returns what a request gets whose key is entered by another one of this process. What the database says of the key comes first:
    /// the other one may be a retry as well, or yet to begin. If the database cannot be asked, nothing is known.
    pub(crate) async fn begin_beside<C>(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        info: Option<&ExecutionInfo>,
    ) -> Result<Begin<C>, DatabaseError> {
        // A retry holds the key for a moment as well, until it has found the record.
        if let Some(row) = self.look(key).await? {
            return Ok(self.judge_without_claim(key, fingerprint, row));
        }
        if self.running.entered(key) == Some(*fingerprint) {
            return Ok(Begin::InFlight(*fingerprint));
        }
        if let Some(begun) = self.begin_beside_holder(key, fingerprint, info).await? {
            return Ok(begun);
        }
        // If the database has no such locks, only this process knows of its transaction.
        let running = self.running.holder_of(key).filter(|_| self.executor.statements.holder.is_none());
        Ok(Begin::InFlight(running.unwrap_or(*fingerprint)))
    }

    /// Returns the row of the key, if it is not free.
    pub(crate) async fn look(&self, key: &StorageKey) -> Result<Option<BeginRow>, DatabaseError> {
        let executor = &self.executor;
        // Of no owner, since an owner does not see its own claim.
        let result =
            executor.read(Step::Begin, &executor.statements.look, &[key_value(key), Value::Bytes(&[])]).await?;
        let row = result.rows.first().map(|row| BeginRow::read::<D>(row, key)).transpose();
        row.map_err(|problem| DatabaseError { step: Step::Begin, problem })
    }

    /// Returns what a row means to a request that does not get the claim.
    pub(crate) fn judge_without_claim<C>(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        row: BeginRow,
    ) -> Begin<C> {
        match row {
            BeginRow::Record { owner, record } => {
                self.count_replay(key, owner, &record, fingerprint);
                Begin::Completed(record)
            }
            BeginRow::Claim { fingerprint, .. } => Begin::InFlight(fingerprint),
            // `look` returns none of these.
            BeginRow::Claimed => Begin::InFlight(*fingerprint),
        }
    }

    /// Returns for how long the transaction of a session has waited for its next statement. `None` if it runs one. A database that
    /// cannot be asked has one writer, whom every open transaction keeps waiting.
    pub(crate) async fn idle(&self, session: Option<i64>) -> Option<Duration> {
        let (Some(idle), Some(session)) = (&self.executor.statements.idle, session) else {
            return Some(Duration::MAX);
        };
        let result = self.executor.read(Step::Wait, idle, &[Value::Number(session)]).await.ok()?;
        let milliseconds = rows::number::<D>(result.rows.first()?).ok()?;
        Some(Duration::from_millis(u64::try_from(milliseconds).ok()?))
    }

    /// Leaves a claim whose outcome is unknown to retries, after other code has ended the transaction of its handler.
    pub(crate) async fn leave_unknown(
        &self,
        key: &StorageKey,
        owner: &OwnerToken,
        fingerprint: &Fingerprint,
        ttl: Duration,
    ) {
        let executor = &self.executor;
        let values = [
            key_value(key),
            Value::Bytes(owner.as_bytes()),
            Value::Bytes(fingerprint.as_bytes()),
            NO_LEASE,
            Value::Number(D::ticks(retention(Duration::ZERO, ttl))),
            Value::Nullable(None),
        ];
        if let Err(error) = executor.execute(Step::Begin, &executor.statements.begin, &values).await {
            tracing::error!(%key, %error, "a handler ended its transaction, and retries may run it again");
        }
    }
}

/// Returns what the lock is made of that tells others under which policy a transaction holds a key: its endpoint, and the policy.
/// `None` without a policy, of which no change is known. The sign is left out, since columns of the server have none.
pub(crate) fn policy_lock(key: &StorageKey, info: Option<&ExecutionInfo>) -> Option<[i64; 2]> {
    let info = info.filter(|info| info.policy() != PolicyTag::NONE)?;
    let endpoint = PolicyTag::NONE.with(key.as_bytes()).with(info.endpoint().as_bytes());
    Some([endpoint, info.policy()].map(|tag| {
        let [a, b, c, d, ..] = tag.to_bytes();
        i64::from(u32::from_le_bytes([a, b, c, d]) >> 1)
    }))
}

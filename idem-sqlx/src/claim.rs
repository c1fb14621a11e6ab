//! Claims: every change is one statement, a compare-and-set on the owner token.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idem_runtime::remote::{OwnerToken, ReleaseUnconfirmed, UnconfirmedClaims, Waiters};
use idem_runtime::{Claim, ExecutionInfo, Fingerprint, Record, StorageKey, StoreError};
use tokio::runtime::Handle;

use crate::dialect::{Dialect, MAX_TTL, Value, retention};
use crate::errors::{DatabaseError, Problem, Step};
use crate::execute::{Executor, key_value};
use crate::transaction::TransactionClaim;

/// A claim in an [`SqlStore`](crate::SqlStore). If it is dropped before it ends, it is abandoned when its lease expires; a claim
/// that is a transaction is released.
pub struct SqlClaim<D: Dialect>(pub(crate) ClaimKind<D>);

pub(crate) enum ClaimKind<D: Dialect> {
    Leased(LeasedClaim<D>),
    Transaction(Box<TransactionClaim<D>>),
}

impl<D: Dialect> SqlClaim<D> {
    pub(crate) fn of_transaction(claim: TransactionClaim<D>) -> Self {
        Self(ClaimKind::Transaction(Box::new(claim)))
    }
}

impl<D: Dialect> Claim for SqlClaim<D> {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        match &mut self.0 {
            ClaimKind::Leased(claim) => claim.renew(lease).await,
            ClaimKind::Transaction(claim) => claim.take_over().await,
        }
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        match self.0 {
            ClaimKind::Leased(claim) => claim.complete(record, ttl).await,
            ClaimKind::Transaction(claim) => claim.complete(&record, ttl).await,
        }
    }

    async fn release(self) -> Result<(), StoreError> {
        match self.0 {
            ClaimKind::Leased(claim) => claim.release().await,
            ClaimKind::Transaction(claim) => claim.release().await,
        }
    }

    fn try_clone(&self) -> Option<Self> {
        match &self.0 {
            ClaimKind::Leased(claim) => claim.try_clone().map(|claim| Self(ClaimKind::Leased(claim))),
            ClaimKind::Transaction(_) => None,
        }
    }
}

impl<D: Dialect> fmt::Debug for SqlClaim<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match &self.0 {
            ClaimKind::Leased(claim) => &claim.key,
            ClaimKind::Transaction(claim) => claim.key(),
        };
        f.debug_struct("SqlClaim").field("key", key).finish_non_exhaustive()
    }
}

/// A claim that is a row with a lease.
pub(crate) struct LeasedClaim<D: Dialect> {
    pub(crate) executor: Arc<Executor<D>>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) key: StorageKey,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) owner: OwnerToken,
    /// The owner that disappeared, until [`renew`](Claim::renew) has taken its claim over.
    pub(crate) previous_owner: Option<OwnerToken>,
    /// What is written when the claim is taken over.
    pub(crate) info: Option<ExecutionInfo>,
    pub(crate) ttl: Duration,
    /// A release was sent, and may have taken effect. Shared by clones.
    pub(crate) maybe_released: Arc<AtomicBool>,
    /// Set if `begin` was sent twice: its first try may arrive when this claim has been released, and make a claim without an owner,
    /// with this lease.
    pub(crate) late_begin: Option<(Arc<UnconfirmedClaims<ClaimReleaser<D>>>, Duration)>,
}

/// Wakes those who wait for the end of a claim, if `rows` says that it ended: here at once, and in other processes in the
/// background. A message may be lost: they also poll.
pub(crate) fn announce<D: Dialect>(
    executor: &Arc<Executor<D>>,
    waiters: &Waiters,
    key: &StorageKey,
    rows: &[D::Row],
) -> bool {
    let Some(row) = rows.first() else { return false };
    waiters.wake(key);
    if let Some(notify) = &executor.statements.notify
        && matches!(D::boolean(row, 0), Ok(Some(true)))
        && let Ok(runtime) = Handle::try_current()
    {
        let (executor, notify, key) = (Arc::clone(executor), Arc::clone(notify), *key);
        drop(runtime.spawn(async move {
            if let Err(error) = executor.execute(Step::Wait, &notify, &[key_value(&key)]).await {
                tracing::debug!(%key, %error, "could not notify other processes of the end of a claim; waiters poll");
            }
        }));
    }
    true
}

struct RowChange {
    done: bool,
    repeated: bool,
}

impl<D: Dialect> LeasedClaim<D> {
    async fn store(&self, record: &Record, ttl: Duration) -> Result<RowChange, DatabaseError> {
        let bytes = record.to_checksummed_bytes(&self.key);
        let ttl = Value::Number(D::ticks(ttl.min(MAX_TTL)));
        let values = [key_value(&self.key), Value::Bytes(self.owner.as_bytes()), Value::Bytes(&bytes), ttl];
        self.end(Step::Complete, &self.executor.statements.complete, &values).await
    }

    async fn change(&self, step: Step, sql: &Arc<str>, values: &[Value<'_>]) -> Result<RowChange, DatabaseError> {
        let result = self.executor.execute(step, sql, values).await?;
        Ok(RowChange { done: !result.rows.is_empty(), repeated: result.repeated })
    }

    /// The same, for a step that ends the claim.
    async fn end(&self, step: Step, sql: &Arc<str>, values: &[Value<'_>]) -> Result<RowChange, DatabaseError> {
        let result = self.executor.execute(step, sql, values).await?;
        let done = announce(&self.executor, &self.waiters, &self.key, &result.rows);
        Ok(RowChange { done, repeated: result.repeated })
    }
}

impl<D: Dialect> Claim for LeasedClaim<D> {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let statements = &self.executor.statements;
        let key = key_value(&self.key);
        let owner = Value::Bytes(self.owner.as_bytes());
        let retention = Value::Number(D::ticks(retention(lease, self.ttl)));
        let lease = Value::Number(D::ticks(lease.min(MAX_TTL)));
        let change = match &self.previous_owner {
            None => self.change(Step::Renew, &statements.renew, &[key, owner, lease, retention]).await?,
            Some(previous_owner) => {
                let fingerprint = Value::Bytes(self.fingerprint.as_bytes());
                let info = self.info.as_ref().map(ExecutionInfo::to_bytes);
                let (previous_owner, info) =
                    (Value::Bytes(previous_owner.as_bytes()), Value::Nullable(info.as_deref()));
                let values = [key, owner, lease, retention, previous_owner, fingerprint, info];
                self.change(Step::Renew, &statements.take_over, &values).await?
            }
        };
        if !change.done {
            return Err(StoreError::Lost);
        }
        self.previous_owner = None;
        Ok(())
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let change = match self.store(&record, ttl).await {
            // A retry must learn that the handler ran, even if there is no room for the response.
            Err(DatabaseError { problem: Problem::Full(_), .. }) => self.store(&record.tombstone(), ttl).await,
            change => change,
        };
        if change?.done { Ok(()) } else { Err(StoreError::Lost) }
    }

    async fn release(self) -> Result<(), StoreError> {
        let values = [key_value(&self.key), Value::Bytes(self.owner.as_bytes())];
        let earlier = self.maybe_released.swap(true, Ordering::SeqCst);
        // A release that is dropped half-way, or fails, leaves the flag set.
        let change = self.end(Step::Release, &self.executor.statements.release, &values).await?;
        if let Some((unconfirmed, lease)) = &self.late_begin {
            unconfirmed.guard((self.key, self.owner), *lease).in_doubt().set(true);
        }
        // If the row is gone, the try whose reply was lost released it, and another request may have claimed the key since. The
        // claim is no longer this owner's, which is all that a release is for.
        if change.done || change.repeated || earlier {
            self.waiters.wake(&self.key);
            return Ok(());
        }
        self.maybe_released.store(false, Ordering::SeqCst);
        Err(StoreError::Lost)
    }

    fn try_clone(&self) -> Option<Self> {
        Some(Self {
            executor: Arc::clone(&self.executor),
            waiters: Arc::clone(&self.waiters),
            info: self.info.clone(),
            maybe_released: Arc::clone(&self.maybe_released),
            late_begin: self.late_begin.clone(),
            ..*self
        })
    }
}

/// Releases unconfirmed claims.
pub(crate) struct ClaimReleaser<D: Dialect> {
    pub(crate) executor: Arc<Executor<D>>,
    pub(crate) waiters: Arc<Waiters>,
}

impl<D: Dialect> ReleaseUnconfirmed for ClaimReleaser<D> {
    type Claim = (StorageKey, OwnerToken);

    // Requests need not wait for connections until many claims have been tried.
    const MAX_CONCURRENT_TRIES: usize = 1;

    async fn release(&self, (key, owner): &(StorageKey, OwnerToken)) -> Result<bool, StoreError> {
        let values = [key_value(key), Value::Bytes(owner.as_bytes())];
        let result = self.executor.execute(Step::Release, &self.executor.statements.release, &values).await?;
        // Only one try gets a row. If its reply is lost, the next ones find nothing.
        Ok(announce(&self.executor, &self.waiters, key, &result.rows))
    }
}

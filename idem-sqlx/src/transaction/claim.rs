//! A claim that is a transaction.

use std::future::Future;
use std::time::Duration;

use idem_runtime::remote::{OwnerToken, jitter};
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{ExecutionInfo, Fingerprint, Record, StorageKey, StoreError};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use super::{Beginner, Entered, NO_LEASE, OpenTransaction, fill, hex};
use crate::claim::retention;
use crate::dialect::{Dialect, MAX_TIME, TransactionState, Value};
use crate::errors::{DatabaseError, Problem, Step};
use crate::execute::key_value;
use crate::rows::BeginRow;
use crate::store::SqlStore;

/// How long is looked whether a commit took effect that was not confirmed.
const DOUBT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before the next look.
const DOUBT_PAUSE: Duration = Duration::from_millis(20);
/// A transaction that waits longer for its handler is worth a warning: it holds locks and a connection.
const LONG: Duration = Duration::from_secs(1);

/// A claim that is the transaction in a slot.
pub(crate) struct TransactionClaim<D: Dialect> {
    store: SqlStore<D>,
    slot: TransactionSlot,
    key: StorageKey,
    fingerprint: Fingerprint,
    owner: OwnerToken,
    info: Option<ExecutionInfo>,
    ttl: Duration,
    /// See [`BEGIN`](crate::dialect::sealed::Dialect::BEGIN).
    session: i64,
    /// No other code knows the name: if it is gone, other code has ended the transaction.
    savepoint: String,
    /// Warns of a handler that keeps its transaction waiting.
    watch: Option<AbortHandle>,
    /// The transaction until it is in the slot.
    open: Option<OpenTransaction<D>>,
    /// The owner that disappeared, until its claim is taken over.
    previous_owner: Option<OwnerToken>,
    /// `None` if the request has no key.
    _entered: Option<Entered>,
    _permit: OwnedSemaphorePermit,
}

impl<D: Dialect> TransactionClaim<D> {
    pub(super) fn new(
        beginner: &Beginner<'_, D>,
        session: i64,
        open: OpenTransaction<D>,
        (entered, permit): (Option<Entered>, OwnedSemaphorePermit),
    ) -> Self {
        Self {
            store: beginner.store.clone(),
            slot: beginner.slot.clone(),
            key: beginner.key,
            fingerprint: beginner.fingerprint,
            owner: beginner.owner,
            info: beginner.options.info.clone(),
            ttl: beginner.options.ttl,
            session,
            savepoint: format!("idem_{}", hex(beginner.owner.as_bytes())),
            watch: None,
            open: Some(open),
            previous_owner: None,
            _entered: entered,
            _permit: permit,
        }
    }

    pub(crate) fn key(&self) -> &StorageKey {
        &self.key
    }

    pub(super) fn wait_for_take_over(&mut self, previous_owner: OwnerToken) {
        self.previous_owner = Some(previous_owner);
    }

    /// Hands the transaction to the handler.
    pub(super) async fn open(&mut self) -> Result<(), sqlx::Error> {
        if let Some(mut open) = self.open.take() {
            open.savepoint(&self.savepoint).await?;
            self.slot.put(open);
            self.watch = Some(tokio::spawn(self.watch()).abort_handle());
        }
        Ok(())
    }

    /// Warns of a handler that keeps its transaction waiting for long.
    fn watch(&self) -> impl Future<Output = ()> + Send + 'static {
        let (store, session) = (self.store.clone(), self.session);
        let endpoint = self.info.as_ref().map(|info| info.endpoint().to_owned());
        async move {
            let mut idle = Duration::ZERO;
            while idle < LONG {
                sleep(LONG.saturating_sub(idle)).await;
                idle = store.idle(session).await.unwrap_or_default();
            }
            tracing::warn!(
                endpoint,
                "a handler has kept its `Tx` waiting for more than a second; calls to other services belong before or after it"
            );
        }
        .in_current_span()
        .with_current_subscriber()
    }

    /// Takes over the claim of an owner that disappeared, within the transaction.
    pub(crate) async fn take_over(&mut self) -> Result<(), StoreError> {
        let Some(previous_owner) = self.previous_owner.take() else { return Ok(()) };
        let Some(open) = &mut self.open else { return Err(StoreError::Lost) };
        let failed = |problem| StoreError::from(DatabaseError { step: Step::Renew, problem });
        let executor = self.store.executor();
        let info = self.info.as_ref().map(ExecutionInfo::to_bytes);
        let values = [
            key_value(&self.key),
            Value::Bytes(self.owner.as_bytes()),
            NO_LEASE,
            Value::Number(D::ticks(retention(Duration::ZERO, self.ttl))),
            Value::Bytes(previous_owner.as_bytes()),
            Value::Bytes(self.fingerprint.as_bytes()),
            Value::Nullable(info.as_deref()),
        ];
        let rows = open.run(fill::<D>(&executor.statements.take_over, &values)).await;
        if rows.map_err(|error| failed(D::problem(error, &executor.table)))?.is_empty() {
            return Err(StoreError::Lost);
        }
        self.open().await.map_err(|error| failed(D::problem(error, &self.store.executor().table)))
    }

    /// Writes the record, and commits.
    pub(crate) async fn complete(self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let bytes = record.to_checksummed_bytes(&self.key);
        let values = [
            key_value(&self.key),
            Value::Bytes(self.owner.as_bytes()),
            Value::Bytes(&bytes),
            Value::Number(D::ticks(ttl.min(MAX_TIME))),
        ];
        let end = fill::<D>(&self.store.executor().statements.complete_in_transaction, &values);
        self.commit(end).await
    }

    /// Leaves no record. What the handler wrote is kept if it returned a success that its policy does not record; otherwise it is
    /// undone. The key is free.
    pub(crate) async fn release(self) -> Result<(), StoreError> {
        if !self.slot.keeps_writes() {
            return self.roll_back().await;
        }
        let values = [key_value(&self.key), Value::Bytes(self.owner.as_bytes())];
        let end = fill::<D>(&self.store.executor().statements.release, &values);
        self.commit(end).await
    }

    /// Commits, after the statement that ends the claim.
    async fn commit(mut self, end: String) -> Result<(), StoreError> {
        let mut open = self.taken()?;
        let savepoint = &self.savepoint;
        let undo =
            if self.slot.keeps_writes() { String::new() } else { format!("ROLLBACK TO SAVEPOINT {savepoint}; ") };
        let end = if self.slot.is_unkeyed() { String::new() } else { format!("{end}; ") };
        let sql = format!("{undo}RELEASE SAVEPOINT {savepoint}; {end}{}", D::COMMIT);
        let error = match open.run_last(sql).await {
            Ok(rows) => {
                open.put_back();
                // The row was in the transaction, so only the handler can have removed it.
                let has_ended = self.slot.is_unkeyed() || !rows.is_empty();
                return if has_ended { Ok(()) } else { Err(self.gone().await) };
            }
            Err(error) => error,
        };
        // Before anything is looked up: it closes the connection.
        drop(open);
        match D::transaction_state(&error) {
            TransactionState::Gone => return Err(self.gone().await),
            TransactionState::Aborted => {
                self.slot.set_fault(
                    "it returned a success although a statement had failed in its transaction, which was rolled back; return an \
                     error, or run the statement in a nested transaction",
                );
                return Err(StoreError::unavailable(error));
            }
            TransactionState::Open => {}
        }
        let problem = D::problem(error, &self.store.executor().table);
        if problem.leaves_doubt() {
            return self.resolve(problem).await;
        }
        if matches!(problem, Problem::Refused(_)) {
            self.slot.set_fault("the database refused to commit what it wrote, and rolled it back");
            tracing::error!(key = %self.key, error = %problem, "the transaction of a handler was not committed");
        }
        Err(DatabaseError { step: Step::Commit, problem }.into())
    }

    async fn roll_back(mut self) -> Result<(), StoreError> {
        let mut open = self.taken()?;
        let sql = format!("ROLLBACK TO SAVEPOINT {}; {}", self.savepoint, D::ROLLBACK);
        match open.run(sql).await {
            Ok(_) => open.put_back(),
            Err(error) => {
                // The database rolls back when the connection is closed.
                drop(open);
                if D::transaction_state(&error) == TransactionState::Gone {
                    return Err(self.gone().await);
                }
            }
        }
        Ok(())
    }

    fn taken(&self) -> Result<OpenTransaction<D>, StoreError> {
        self.slot.take().ok_or_else(|| {
            self.slot.set_fault("its `Tx` was still in use after it returned, and was rolled back; drop it before");
            StoreError::unavailable("the transaction is still in use")
        })
    }

    /// The handler has ended the transaction itself: what it wrote before may be committed, and what it wrote after is. The outcome
    /// is unknown to retries.
    async fn gone(&mut self) -> StoreError {
        self.slot.set_fault("it ended the transaction of its `Tx`; leave COMMIT and ROLLBACK to the attribute");
        if !self.slot.is_unkeyed() {
            self.store.leave_unknown(&self.key, &self.owner, &self.fingerprint, self.ttl).await;
        }
        StoreError::Lost
    }

    /// Looks whether a commit took effect that was not confirmed.
    async fn resolve(&mut self, problem: Problem) -> Result<(), StoreError> {
        if self.slot.is_unkeyed() {
            self.slot.set_fault("its commit was not confirmed, and without a key it is unknown whether it took effect");
            return Err(StoreError::Lost);
        }
        let until = Instant::now() + DOUBT_TIMEOUT;
        while Instant::now() < until {
            match self.look().await {
                Ok(Some(true)) => return Ok(()),
                Ok(Some(false)) => break,
                Ok(None) | Err(_) => sleep(jitter(DOUBT_PAUSE)).await,
            }
        }
        // A retry finds out what happened.
        Err(DatabaseError { step: Step::Commit, problem }.into())
    }

    /// Returns whether the record is there. `None` if the session may still commit.
    async fn look(&mut self) -> Result<Option<bool>, DatabaseError> {
        let holder = self.store.holder(&self.key, &self.fingerprint, None).await?;
        if holder.is_some_and(|holder| holder.session == self.session) {
            return Ok(None);
        }
        // The session has ended, and this sees what it committed.
        let executor = self.store.executor();
        let values = [key_value(&self.key), Value::Bytes(self.owner.as_bytes())];
        let result = executor.read(Step::Commit, &executor.statements.look, &values).await?;
        let row = result.rows.first().map(|row| BeginRow::read::<D>(row, &self.key)).transpose();
        let row = row.map_err(|problem| DatabaseError { step: Step::Commit, problem })?;
        Ok(Some(matches!(row, Some(BeginRow::Record { owner, .. }) if owner == self.owner)))
    }
}

impl<D: Dialect> Drop for TransactionClaim<D> {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        // A key that was not taken over is the usual end of a retry whose outcome is unknown.
        if let Some(open) = self.open.take()
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn(open.undo()));
        }
        // What is left open is closed first, so that no request of this process finds the key locked.
        drop(self.slot.take::<OpenTransaction<D>>());
    }
}

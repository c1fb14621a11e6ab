//! The end of a transaction: its commit, its rollback, and what became of a commit that was not confirmed.

use std::time::Duration;

use idem_runtime::remote::jitter;
use idem_runtime::{Record, StoreError};
use tokio::time::{Instant, sleep};

use super::{ClaimRow, OpenTransaction, TransactionClaim, nothing_is_left};
use crate::dialect::{Dialect, TransactionState};
use crate::errors::{DatabaseError, Problem, Step};
use crate::rows::BeginRow;

/// How long is looked whether a commit took effect that was not confirmed.
const DOUBT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before the next look.
const DOUBT_PAUSE: Duration = Duration::from_millis(20);

/// What became of a commit that was not confirmed.
enum CommitState {
    /// It took effect: its record is there.
    Committed,
    /// It did not, and will not.
    NotCommitted,
    /// Its session still holds the key, and may commit.
    UnderWay,
}

impl<D: Dialect> TransactionClaim<D> {
    /// Writes the record, and commits.
    pub(crate) async fn complete(self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let end = self.row.complete::<D>(&self.table.executor.statements, record, ttl);
        self.commit(end, true).await
    }

    /// Leaves no record. What the handler wrote is kept if it returned a success that its policy does not record; otherwise it is
    /// undone. The key is free.
    pub(crate) async fn release(self) -> Result<(), StoreError> {
        if !self.slot.keeps_writes() {
            return self.roll_back().await;
        }
        let end = self.row.release::<D>(&self.table.executor.statements);
        self.commit(end, false).await
    }

    /// Commits, after the statement that ends the claim.
    async fn commit(mut self, end: String, leaves_record: bool) -> Result<(), StoreError> {
        let mut open = self.taken()?;
        let savepoint = &self.savepoint;
        let undo =
            if self.slot.keeps_writes() { String::new() } else { format!("ROLLBACK TO SAVEPOINT {savepoint}; ") };
        let end = if self.slot.is_unkeyed() { String::new() } else { format!("{end}; ") };
        let sql = format!("{undo}RELEASE SAVEPOINT {savepoint}; {end}{}", D::COMMIT);
        let error = match open.run_last(sql, !self.slot.keeps_writes()).await {
            Ok(rows) => {
                open.put_back();
                // The row was in the transaction, so only the handler can have removed it.
                let has_ended = self.slot.is_unkeyed() || !rows.is_empty();
                return if has_ended { Ok(()) } else { Err(self.gone().await) };
            }
            Err(error) => error,
        };
        let state = self.state(&mut open, &error).await;
        // Before anything is looked up: it closes the connection.
        drop(open);
        match state {
            TransactionState::Gone => return Err(self.gone().await),
            TransactionState::Aborted => {
                // Without writes to keep, only SQLite's own rollback leads here, and the handler made no mistake.
                if self.slot.keeps_writes() {
                    self.slot.set_fault(
                        "it returned a success although a statement had failed in its transaction, which was rolled back; return an \
                         error, or run the statement in a nested transaction",
                    );
                }
                return Err(StoreError::unavailable(error));
            }
            TransactionState::Open => {}
        }
        let is_own_failure = D::is_own_failure(&error);
        let problem = D::problem(error, &self.table.executor.table);
        if problem.leaves_doubt() {
            if leaves_record {
                return self.resolve(problem).await;
            }
            self.slot
                .set_fault("its commit was not confirmed, and without a record it is unknown whether it took effect");
            return Err(StoreError::Lost);
        }
        // The claim was made in this transaction, so the store itself has no other problem.
        if !is_own_failure && !matches!(problem, Problem::Busy(_) | Problem::Full(_) | Problem::ReadOnly) {
            self.slot.set_fault("the database refused to commit what it wrote, and rolled it back");
            tracing::error!(key = %self.row.key, error = %problem, "the transaction of a handler was not committed");
        }
        Err(DatabaseError { step: Step::Commit, problem }.into())
    }

    async fn roll_back(mut self) -> Result<(), StoreError> {
        let mut open = self.taken()?;
        let sql = format!("ROLLBACK TO SAVEPOINT {}; {}", self.savepoint, D::ROLLBACK);
        match open.run_last(sql, true).await {
            Ok(_) => open.put_back(),
            Err(error) => {
                let state = self.state(&mut open, &error).await;
                // The database rolls back when the connection is closed.
                drop(open);
                if state == TransactionState::Gone {
                    return Err(self.gone().await);
                }
            }
        }
        Ok(())
    }

    /// Returns what an error says of the transaction.
    async fn state(&mut self, open: &mut OpenTransaction<D>, error: &sqlx::Error) -> TransactionState {
        let state = D::transaction_state(error);
        let claimed = self.changes.map(|changes| changes + i64::from(!self.slot.is_unkeyed()));
        if state == TransactionState::Gone
            && nothing_is_left(open.connection_mut(), &self.table, &self.row, claimed).await
        {
            return TransactionState::Aborted;
        }
        state
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
            let ClaimRow { key, owner, fingerprint, ttl, .. } = &self.row;
            self.table.leave_unknown(key, owner, fingerprint, *ttl).await;
        }
        StoreError::Lost
    }

    /// Looks whether a commit took effect that was not confirmed: its record tells.
    async fn resolve(&mut self, problem: Problem) -> Result<(), StoreError> {
        let until = Instant::now() + DOUBT_TIMEOUT;
        while Instant::now() < until {
            match self.look().await {
                Ok(CommitState::Committed) => return Ok(()),
                Ok(CommitState::NotCommitted) => break,
                Ok(CommitState::UnderWay) | Err(_) => sleep(jitter(DOUBT_PAUSE)).await,
            }
        }
        // A retry finds out what happened.
        Err(DatabaseError { step: Step::Commit, problem }.into())
    }

    async fn look(&mut self) -> Result<CommitState, DatabaseError> {
        let holder = self.table.holder(&self.row.key, &self.row.fingerprint, None).await?;
        if holder.is_some_and(|holder| Some(holder.session) == self.session) {
            return Ok(CommitState::UnderWay);
        }
        // The session has ended, and this sees what it committed.
        let row = self.table.look(&self.row.key).await?;
        Ok(match row {
            Some(BeginRow::Record { owner, .. }) if owner == self.row.owner => CommitState::Committed,
            _ => CommitState::NotCommitted,
        })
    }
}

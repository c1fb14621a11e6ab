//! A claim and a record that are rows of a transaction which the caller has begun, and will end.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::caller_transaction::CallerTransaction;
use idem_runtime::remote::{OwnerToken, jitter};
use idem_runtime::{Begin, BeginOptions, Fingerprint, Record, StorageKey, StoreError};
use sqlx_core::transaction::TransactionManager;
use tokio::time::sleep;

use super::{ClaimRow, MAX_ATTEMPTS, PAUSE, lock_sql, nothing_is_left, read_late_replies};
use crate::dialect::{Dialect, TransactionState};
use crate::errors::{DatabaseError, Problem, Step};
use crate::rows::{self, BeginRow};
use crate::table::Table;

/// The caller's transaction, and the claim in it. What is done to it since the claim is within a savepoint.
pub(crate) struct InCallersTransaction<'t, D: Dialect> {
    pub(crate) connection: &'t mut D::Connection,
    table: Option<Arc<Table<D>>>,
    claim: Option<ClaimInTransaction>,
}

#[derive(Clone)]
struct ClaimInTransaction {
    row: ClaimRow,
    savepoint: String,
    /// The owner that disappeared, until its claim is taken over.
    previous_owner: Option<OwnerToken>,
    /// See [`CHANGES`](crate::dialect::sealed::Dialect::CHANGES). The number before the claim.
    changes: Option<i64>,
}

/// Whether a transaction gets the lock of a key whose claim is abandoned. Without the lock others would not see that it holds the key.
enum KeyLock {
    /// It has the lock.
    Got,
    /// Another transaction has it, perhaps only until it has found out that it is refused.
    Busy,
    /// Another session takes the claim over.
    TakenOver,
}

impl ClaimInTransaction {
    /// Returns what undoes everything since the savepoint.
    fn rollback(&self) -> String {
        let savepoint = &self.savepoint;
        format!("ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}")
    }
}

impl<'t, D: Dialect> InCallersTransaction<'t, D> {
    /// `table` is that of the engine's store, if it is one of this database system.
    pub(crate) fn new(table: Option<Arc<Table<D>>>, connection: &'t mut D::Connection) -> Self {
        Self { connection, table, claim: None }
    }

    async fn run(&mut self, sql: String) -> Result<Vec<D::Row>, sqlx::Error> {
        read_late_replies::<D>(self.connection).await?;
        D::run(self.connection, sql).await
    }

    fn table_name(&self) -> &str {
        self.table.as_ref().map_or("", |table| &table.executor.table)
    }

    fn failed(&self, step: Step, error: sqlx::Error) -> StoreError {
        DatabaseError { step, problem: D::problem(error, self.table_name()) }.into()
    }

    /// Claims the key, or returns the row that prevents it, or nothing if it has changed meanwhile.
    async fn claim(
        &mut self,
        table: &Table<D>,
        claim: &mut ClaimInTransaction,
    ) -> Result<Option<BeginRow>, StoreError> {
        let claim_sql = claim.row.claim::<D>(&table.executor.statements);
        // The claim comes before anything that reads a table: in SQLite a transaction that has read may be refused the lock to write.
        let savepoint = &claim.savepoint;
        let changes = D::CHANGES.map(|changes| format!("{changes}; ")).unwrap_or_default();
        let sql = format!("{changes}SAVEPOINT {savepoint}; SAVEPOINT {savepoint}_; {claim_sql}; {}", D::DATABASE);
        let rows = match self.run(sql).await {
            Ok(rows) => rows,
            Err(error) => {
                // If that fails, the caller's transaction had failed before, or the connection broke.
                if self.roll_back(claim).await.is_ok() {
                    // Of another database the error would say too little.
                    self.check_database(table).await?;
                }
                return Err(self.failed(Step::Begin, error));
            }
        };
        let Some((database, mut rows)) = rows.split_last() else { return Ok(None) };
        if D::CHANGES.is_some()
            && let Some((changes, others)) = rows.split_first()
        {
            (claim.changes, rows) = (rows::number::<D>(changes).ok(), others);
        }
        if let Err(error) = check_database(table, database).await {
            self.roll_back(claim).await?;
            return Err(error);
        }
        let row = rows.first().map(|row| BeginRow::read::<D>(row, &claim.row.key)).transpose();
        if row.is_err() {
            self.roll_back(claim).await?;
        }
        row.map_err(|problem| DatabaseError { step: Step::Begin, problem }.into())
    }

    /// Asks for the lock of a key whose claim is abandoned.
    async fn lock(&mut self, table: &Table<D>, key: &StorageKey) -> Result<KeyLock, StoreError> {
        if let Some(session) = D::SESSION {
            let rows = self.run(session.to_owned()).await.map_err(|error| self.failed(Step::Begin, error))?;
            let session = rows.first().and_then(|row| rows::number::<D>(row).ok());
            if table.is_taken_over(key, session).await? {
                return Ok(KeyLock::TakenOver);
            }
        }
        // A database without such locks has one writer.
        let Some(lock) = lock_sql::<D>(&table.executor.statements, key) else { return Ok(KeyLock::Got) };
        let rows = self.run(lock).await.map_err(|error| self.failed(Step::Begin, error))?;
        Ok(if rows.is_empty() { KeyLock::Busy } else { KeyLock::Got })
    }

    /// Undoes everything since the savepoint, after a step of this crate. If the savepoint is gone, the database has rolled back the
    /// whole transaction when the step failed, as SQLite does if it finds no room for a write.
    async fn roll_back(&mut self, claim: &ClaimInTransaction) -> Result<(), StoreError> {
        match self.run(claim.rollback()).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if D::transaction_state(&error) == TransactionState::Gone {
                    self.begin_again().await;
                }
                Err(self.failed(Step::Release, error))
            }
        }
    }

    /// Begins a transaction in the place of the one that is gone, if sqlx will end one. Without one, it would return the connection to its
    /// pool in a wrong state. It counts none any more if it has rolled back by itself: the beginning of a nested one was dropped.
    async fn begin_again(&mut self) {
        if D::TransactionManager::get_transaction_depth(self.connection) > 0 {
            let _ = self.run("BEGIN".to_owned()).await;
        }
    }

    async fn check_database(&mut self, table: &Table<D>) -> Result<(), StoreError> {
        let rows = self.run(D::DATABASE.to_owned()).await.map_err(|error| self.failed(Step::Begin, error))?;
        let Some(row) = rows.first() else { return Ok(()) };
        check_database(table, row).await
    }

    /// The function has ended the transaction: what it wrote before may be committed. The outcome is unknown to later calls.
    async fn gone(&mut self, claim: &ClaimInTransaction) -> StoreError {
        if let Some(table) = &self.table
            && nothing_is_left(self.connection, table, &claim.row, claim.changes.map(|changes| changes + 1)).await
        {
            self.begin_again().await;
            return StoreError::unavailable(
                "the database had no room for a write, and rolled the whole transaction back",
            );
        }
        tracing::error!(
            key = %claim.row.key,
            "a function ended the transaction that `run_in` gave it; leave COMMIT and ROLLBACK to the caller of `run_in`"
        );
        self.begin_again().await;
        if let Some(table) = &self.table {
            let ClaimRow { key, owner, fingerprint, ttl, .. } = &claim.row;
            table.leave_unknown(key, owner, fingerprint, *ttl).await;
        }
        StoreError::Lost
    }
}

impl<D: Dialect> CallerTransaction for InCallersTransaction<'_, D> {
    async fn begin(
        &mut self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<()>, StoreError> {
        let Some(table) = self.table.clone() else { return Err(other_database::<D>()) };
        let row = ClaimRow::new(key, fingerprint, options)?;
        let mut claim = ClaimInTransaction { savepoint: row.savepoint(), row, previous_owner: None, changes: None };
        for _ in 0..MAX_ATTEMPTS {
            let begun = match self.claim(&table, &mut claim).await? {
                Some(BeginRow::Claimed) => {
                    self.claim = Some(claim);
                    return Ok(Begin::Claimed(()));
                }
                Some(BeginRow::Claim { owner, fingerprint: found, lease_has_expired: true })
                    if found == *fingerprint =>
                {
                    match self.lock(&table, key).await {
                        Ok(KeyLock::Got) => {
                            claim.previous_owner = Some(owner);
                            self.claim = Some(claim);
                            return Ok(Begin::Abandoned(()));
                        }
                        Ok(KeyLock::Busy) => {
                            self.roll_back(&claim).await?;
                            sleep(jitter(PAUSE)).await;
                            continue;
                        }
                        Ok(KeyLock::TakenOver) => Some(Begin::InFlight(found)),
                        Err(error) => {
                            self.roll_back(&claim).await?;
                            return Err(error);
                        }
                    }
                }
                Some(row) => Some(table.judge_without_claim(key, fingerprint, row)),
                None => None,
            };
            self.roll_back(&claim).await?;
            if let Some(begun) = begun {
                return Ok(begun);
            }
            if let Some(begun) = table.begin_beside_holder(key, fingerprint, options.info.as_ref()).await? {
                return Ok(begun);
            }
            // It has ended meanwhile.
        }
        Err(DatabaseError { step: Step::Begin, problem: Problem::Contended }.into())
    }

    async fn take_over(&mut self) -> Result<(), StoreError> {
        let (Some(table), Some(claim)) = (&self.table, &self.claim) else { return Err(StoreError::Lost) };
        let Some(previous_owner) = claim.previous_owner else { return Ok(()) };
        let claim = claim.clone();
        let sql = claim.row.take_over::<D>(&table.executor.statements, &previous_owner);
        let error = match self.run(sql).await {
            Ok(rows) if !rows.is_empty() => return Ok(()),
            Ok(_) => StoreError::Lost,
            Err(error) => self.failed(Step::Renew, error),
        };
        self.claim = None;
        self.roll_back(&claim).await?;
        Err(error)
    }

    async fn complete(&mut self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let (Some(table), Some(claim)) = (&self.table, self.claim.clone()) else { return Err(StoreError::Lost) };
        let complete = claim.row.complete::<D>(&table.executor.statements, record, ttl);
        let savepoint = &claim.savepoint;
        // If the inner savepoint is gone, nothing is recorded; if the record has no room, the outer one undoes everything.
        let sql = format!("RELEASE SAVEPOINT {savepoint}_; {complete}; RELEASE SAVEPOINT {savepoint}");
        let error = match self.run(sql).await {
            Ok(rows) if !rows.is_empty() => return Ok(()),
            // The row was in the transaction, so only the function can have removed it.
            Ok(_) => return Err(self.gone(&claim).await),
            Err(error) => error,
        };
        let state = D::transaction_state(&error);
        let failed = self.failed(Step::Commit, error);
        if state == TransactionState::Gone {
            return Err(self.gone(&claim).await);
        }
        // If that fails, nothing is left: the transaction was in order up to this step.
        let is_undone = self.roll_back(&claim).await.is_ok();
        if state == TransactionState::Aborted && is_undone {
            let what = "the function returned `Ok` although a statement had failed in its transaction; return the error, or run the \
                 statement in a nested transaction";
            return Err(StoreError::unavailable(what));
        }
        Err(failed)
    }

    async fn undo(&mut self) -> Result<(), StoreError> {
        let Some(claim) = self.claim.clone() else { return Ok(()) };
        match self.run(claim.rollback()).await {
            Ok(_) => Ok(()),
            Err(error) if D::transaction_state(&error) == TransactionState::Gone => Err(self.gone(&claim).await),
            Err(error) => Err(self.failed(Step::Release, error)),
        }
    }
}

/// Returns an error unless the table is in the database that says this of itself.
async fn check_database<D: Dialect>(table: &Table<D>, row: &D::Row) -> Result<(), StoreError> {
    let bytes = D::bytes(row, 0).map_err(Problem::Refused);
    let bytes = bytes.map_err(|problem| DatabaseError { step: Step::Begin, problem })?;
    if table.is_of_database(&bytes.unwrap_or_default()).await? { Ok(()) } else { Err(other_database::<D>()) }
}

fn other_database<D: Dialect>() -> StoreError {
    let what = format!(
        "the store of the engine is not in the database of the transaction, and the function did not run; make the engine with a \
         `{}` over the same database",
        D::STORE
    );
    tracing::error!("{what}");
    StoreError::unavailable(what)
}

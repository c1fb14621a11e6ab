//! A claim that is a transaction.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::remote::OwnerToken;
use idem_runtime::tracing_context::in_current_context;
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{StorageKey, StoreError};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Beginner, ClaimRow, OpenTransaction};
use crate::dialect::Dialect;
use crate::errors::{DatabaseError, Step};
use crate::running::Entered;
use crate::table::Table;

/// A transaction that waits longer for its handler is worth a warning: it holds locks and a connection.
const LONG: Duration = Duration::from_secs(1);

/// A claim that is the transaction in a slot.
pub(crate) struct TransactionClaim<D: Dialect> {
    pub(super) table: Arc<Table<D>>,
    pub(super) slot: TransactionSlot,
    pub(super) row: ClaimRow,
    /// See [`SESSION`](crate::dialect::sealed::Dialect::SESSION).
    pub(super) session: Option<i64>,
    /// See [`CHANGES`](crate::dialect::sealed::Dialect::CHANGES). The number before the claim.
    pub(super) changes: Option<i64>,
    pub(super) savepoint: String,
    /// Warns of a handler that keeps its transaction waiting.
    watch: Option<AbortHandle>,
    /// The transaction until it is in the slot.
    open: Option<OpenTransaction<D>>,
    /// The owner that disappeared, until its claim is taken over.
    previous_owner: Option<OwnerToken>,
    /// `None` if the request has no key.
    entered: Option<Entered>,
    _permit: OwnedSemaphorePermit,
}

impl<D: Dialect> TransactionClaim<D> {
    pub(super) fn new(
        beginner: Beginner<'_, D>,
        changes: Option<i64>,
        open: OpenTransaction<D>,
        (entered, permit): (Option<Entered>, OwnedSemaphorePermit),
    ) -> Self {
        Self {
            table: Arc::clone(beginner.table),
            slot: beginner.slot,
            session: open.session(),
            changes,
            savepoint: beginner.row.savepoint(),
            row: beginner.row,
            watch: None,
            open: Some(open),
            previous_owner: None,
            entered,
            _permit: permit,
        }
    }

    pub(crate) fn key(&self) -> &StorageKey {
        &self.row.key
    }

    pub(super) fn wait_for_take_over(&mut self, previous_owner: OwnerToken) {
        self.previous_owner = Some(previous_owner);
    }

    /// Hands the transaction to the handler.
    pub(super) async fn hand_over(&mut self) -> Result<(), sqlx::Error> {
        if let Some(entered) = &self.entered {
            entered.set_holds_key();
        }
        if let Some(mut open) = self.open.take() {
            open.savepoint(&self.savepoint).await?;
            self.slot.put(open);
            self.watch = Some(tokio::spawn(self.watch()).abort_handle());
        }
        Ok(())
    }

    /// Warns of a handler that keeps its transaction waiting for long.
    fn watch(&self) -> impl Future<Output = ()> + Send + 'static {
        let (table, session) = (Arc::clone(&self.table), self.session);
        let endpoint = self.row.info.as_ref().map(|info| info.endpoint().to_owned());
        in_current_context(async move {
            let mut idle = Duration::ZERO;
            while idle < LONG {
                sleep(LONG.saturating_sub(idle)).await;
                idle = table.idle(session).await.unwrap_or_default();
            }
            tracing::warn!(
                endpoint,
                "a handler has kept its `Tx` waiting for more than a second; calls to other services belong before or after it, \
                 and its statements on the `Tx` and not on the pool"
            );
        })
    }

    /// Takes over the claim of an owner that disappeared, within the transaction.
    pub(crate) async fn take_over(&mut self) -> Result<(), StoreError> {
        let Some(previous_owner) = self.previous_owner.take() else { return Ok(()) };
        let Some(open) = &mut self.open else { return Err(StoreError::Lost) };
        let failed = |problem| StoreError::from(DatabaseError { step: Step::Renew, problem });
        let executor = &self.table.executor;
        let rows = open.run(self.row.take_over::<D>(&executor.statements, &previous_owner)).await;
        if rows.map_err(|error| failed(D::problem(error, &executor.table)))?.is_empty() {
            return Err(StoreError::Lost);
        }
        self.hand_over().await.map_err(|error| failed(D::problem(error, &self.table.executor.table)))
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

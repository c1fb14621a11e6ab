//! A connection within a transaction.

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::dialect::Dialect;

/// A connection within a transaction. If it is dropped, the connection is closed, and the database rolls back.
pub(crate) struct OpenTransaction<D: Dialect> {
    connection: Option<PoolConnection<D>>,
}

impl<D: Dialect> OpenTransaction<D> {
    pub(super) fn new(connection: PoolConnection<D>) -> Self {
        Self { connection: Some(connection) }
    }

    #[allow(clippy::expect_used, reason = "only `put_back` and `drop` take it")]
    pub(crate) fn connection(&self) -> &D::Connection {
        self.connection.as_ref().expect("a connection")
    }

    #[allow(clippy::expect_used, reason = "only `put_back` and `drop` take it")]
    pub(crate) fn connection_mut(&mut self) -> &mut D::Connection {
        self.connection.as_mut().expect("a connection")
    }

    /// Runs statements.
    pub(super) async fn run(&mut self, sql: String) -> Result<Vec<D::Row>, sqlx::Error> {
        timeout(D::STEP_TIMEOUT, D::run(self.connection_mut(), sql)).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Begins what the handler may roll back. By sqlx, which then counts one transaction: a `begin` of the handler is a savepoint.
    pub(super) async fn savepoint(&mut self, name: &str) -> Result<(), sqlx::Error> {
        // The name is made here.
        let savepoint = AssertSqlSafe(format!("SAVEPOINT {name}")).into_sql_str();
        let begun = D::TransactionManager::begin(self.connection_mut(), Some(savepoint));
        timeout(D::STEP_TIMEOUT, begun).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Rolls back, and returns the connection to its pool. It has no savepoint yet. If that fails, the connection is closed.
    pub(super) async fn undo(mut self) {
        if self.run("ROLLBACK".to_owned()).await.is_ok() {
            drop(self.connection.take());
        }
    }

    /// Returns the connection to its pool, after [`COMMIT`](crate::dialect::sealed::Dialect::COMMIT) or
    /// [`ROLLBACK`](crate::dialect::sealed::Dialect::ROLLBACK).
    pub(super) fn put_back(mut self) {
        // Otherwise the handler forgot a nested transaction.
        if D::TransactionManager::get_transaction_depth(self.connection()) == 1 {
            // Ends the empty transaction. It is sent before anything else, and the pool waits for it.
            D::TransactionManager::start_rollback(self.connection_mut());
            drop(self.connection.take());
        }
    }
}

impl<D: Dialect> Drop for OpenTransaction<D> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no reply from the database in time"))
}

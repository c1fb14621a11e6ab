//! `once` in a transaction of the caller.

use std::future::Future;

use idem_runtime::{Once, RefusalReason, WhenInFlight};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Transaction;

use crate::dialect::Dialect;
use crate::store::SqlStore;
use crate::transaction::InCallersTransaction;

/// [`run_in`](Self::run_in), for [`Once`].
pub trait OnceExt {
    /// Runs `function` if the key is free, and otherwise returns the recorded value, as [`Once::run`] does, but within `tx`: the
    /// id of a message, what its function writes and what is recorded are one commit, which is the caller's. This is an inbox.
    ///
    /// `tx` is a transaction of the database in which the engine's store is; `D` is [`sqlx::Postgres`] or [`sqlx::Sqlite`]. It may
    /// have done other work before, such as taking a message off a queue, and may do more after.
    ///
    /// ```
    /// # #[cfg(feature = "postgres")]
    /// # mod example {
    /// use idem_runtime::{Idempotency, RefusalReason};
    /// use idem_sqlx::OnceExt;
    /// use sqlx::PgPool;
    ///
    /// #[derive(Debug)]
    /// enum ShipError {
    ///     Database(sqlx::Error),
    ///     Refused(RefusalReason),
    /// }
    ///
    /// impl From<sqlx::Error> for ShipError {
    ///     fn from(error: sqlx::Error) -> Self {
    ///         Self::Database(error)
    ///     }
    /// }
    ///
    /// impl From<RefusalReason> for ShipError {
    ///     fn from(reason: RefusalReason) -> Self {
    ///         Self::Refused(reason)
    ///     }
    /// }
    ///
    /// /// Ships an order once, however often its message is delivered. Returns the number of the parcel.
    /// async fn on_order_paid(idempotency: &Idempotency, pool: &PgPool, order: i64) -> Result<i64, ShipError> {
    ///     let mut tx = pool.begin().await?;
    ///     let once = idempotency.once("ship", order.to_string());
    ///     let parcel = once
    ///         .run_in(&mut tx, async |tx| {
    ///             let insert = "INSERT INTO parcels (order_id) VALUES ($1) RETURNING number";
    ///             let parcel: i64 = sqlx::query_scalar(insert).bind(order).fetch_one(&mut *tx).await?;
    ///             let outbox = sqlx::query("INSERT INTO outbox (topic, parcel) VALUES ('shipped', $1)");
    ///             outbox.bind(parcel).execute(&mut *tx).await?;
    ///             Ok::<_, ShipError>(parcel)
    ///         })
    ///         .await?;
    ///     tx.commit().await?;
    ///     Ok(parcel)
    /// }
    /// # }
    /// ```
    ///
    /// | what happens | what `function` wrote | the next call |
    /// |---|---|---|
    /// | `function` returns `Ok`, and the caller commits | is committed, with the record | gets the recorded value |
    /// | `function` returns `Ok`, and the caller rolls back, or its process dies | is rolled back | runs its function |
    /// | `function` returns `Err`, or panics | is undone; the rest of `tx` is as it was | runs its function |
    /// | the commit of the caller is not confirmed | is committed with the record, or neither is | gets the value, or runs |
    ///
    /// Until the caller has ended its transaction, the key is in flight to all others, in this process and in other ones. In SQLite the
    /// transaction locks the whole file for writers. Begin it with `begin_with("BEGIN IMMEDIATE")`, so that another one waits for its end.
    ///
    /// With [`WhenInFlight::Wait`] the call waits while `tx` is open, and so keeps a connection of its pool. In SQLite it does not wait,
    /// since the transaction that waits would keep the other one from ending.
    ///
    /// In PostgreSQL, sqlx rolls back all of `tx` if a nested `begin` is dropped before it is ready. The outcome is then unknown.
    ///
    /// If a write finds no room on the disk, SQLite rolls back all of `tx`. If it was the claim, the record or the first write of `function`,
    /// the next call runs its function. Otherwise the outcome is unknown, since SQLite commits at once what is written after that.
    ///
    /// Under REPEATABLE READ or SERIALIZABLE, a key that was committed meanwhile causes an error of the database. Repeat the whole
    /// transaction then.
    ///
    /// # Errors
    /// As for [`Once::run`]. After a refusal `tx` is as it was before the call, and can be used, unless the connection broke or the
    /// transaction had failed before.
    ///
    /// - [`RefusalReason::StoreUnavailable`], and an error in the log, if the engine's store is not in the database of `tx`.
    /// - [`RefusalReason::StoreUnavailable`] if `function` returns `Ok` after a failed statement of PostgreSQL has aborted the
    ///   transaction. What it wrote is undone.
    /// - [`RefusalReason::OutcomeUnknown`] if `function` runs COMMIT or ROLLBACK itself.
    ///
    /// # Panics
    /// A panic of the function is resumed in the caller, after what it wrote was undone.
    ///
    /// # Cancel safety
    /// The function runs in this future. If the future is dropped, roll `tx` back, or drop it: if it is committed nevertheless, the
    /// outcome is unknown to later calls.
    fn run_in<D, F, T, E>(self, tx: &mut Transaction<'_, D>, function: F) -> impl Future<Output = Result<T, E>>
    where
        D: Dialect,
        F: AsyncFnOnce(&mut D::Connection) -> Result<T, E>,
        T: Serialize + DeserializeOwned,
        E: From<RefusalReason>;
}

impl OnceExt for Once {
    async fn run_in<D, F, T, E>(self, tx: &mut Transaction<'_, D>, function: F) -> Result<T, E>
    where
        D: Dialect,
        F: AsyncFnOnce(&mut D::Connection) -> Result<T, E>,
        T: Serialize + DeserializeOwned,
        E: From<RefusalReason>,
    {
        let once = if D::HAS_ONE_WRITER { self.in_flight(WhenInFlight::Reject) } else { self };
        let mut transaction = InCallersTransaction::new(once.store::<SqlStore<D>>().map(SqlStore::table), tx);
        let function = async |transaction: &mut InCallersTransaction<'_, D>| function(transaction.connection).await;
        once.run_in_transaction_of_caller(&mut transaction, function).await
    }
}

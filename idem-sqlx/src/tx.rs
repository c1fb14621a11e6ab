//! The transaction as an argument of a handler.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use idem_runtime::transaction::TransactionSlot;

use crate::dialect::Dialect;
use crate::transaction::OpenTransaction;

/// A transaction of the database `D`, as an argument of a handler with `#[idempotent]`: the record of the response and what the
/// handler writes are one commit, so the handler takes effect exactly once.
///
/// `&mut *tx` is the connection, for any code of sqlx. `D` is [`sqlx::Postgres`] or [`sqlx::Sqlite`]. Make the engine's store with
/// `from_pool`, from the pool that your handlers use.
///
/// ```
/// # #[cfg(feature = "postgres")]
/// # mod example {
/// use axum::http::StatusCode;
/// use idem_axum::idempotent;
/// use idem_sqlx::Tx;
/// use sqlx::Postgres;
///
/// #[idempotent(required, ttl = "7d")]
/// async fn open_account(mut tx: Tx<Postgres>) -> Result<StatusCode, StatusCode> {
///     let insert = sqlx::query("INSERT INTO accounts (balance) VALUES (0)");
///     insert.execute(&mut *tx).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
///     Ok(StatusCode::CREATED)
/// }
/// # }
/// ```
///
/// # What becomes of the transaction
///
/// | the handler | what it wrote | the record |
/// |---|---|---|
/// | returns a status below 400 | is committed | is committed with it, if `record` has the status |
/// | returns a status of 400 or above | is rolled back | is committed if `record` has the status; without `record`, no 5xx is recorded |
/// | returns [`Unrecorded`](https://docs.rs/idem-axum/latest/idem_axum/struct.Unrecorded.html), panics or exceeds its `timeout` | is rolled back | none: the key is free |
/// | dies with its process | is rolled back by the database | none: the key is free |
///
/// The client gets the response after the commit. If the commit fails, the response is 503 with `Retry-After`, or 500 if the database
/// refuses what the handler wrote, such as by a deferred constraint; nothing has happened. If the commit is not confirmed, the store checks
/// whether the record is there. If a success leaves no record, no one can tell, and the response is 500. In PostgreSQL a failed statement
/// aborts the transaction. If the handler returns a success nevertheless, the response is 500. It is also 500 if the handler runs COMMIT or ROLLBACK itself, and then
/// the outcome is unknown to retries. A nested `tx.begin()` is a savepoint, and may be committed or rolled back.
///
/// The response is read up to `max_response` before the commit. The rest of a longer one is sent after the commit, and a retry is refused.
///
/// A request without a key runs in an ordinary transaction, which the same responses commit or roll back.
///
/// # Errors
/// The response is 500 if the handler has no `#[idempotent]` or has two arguments `Tx`, or if the engine's store cannot open the
/// transaction. An error in the log says what to do.
///
/// # Panics
/// When it is dereferenced before the handler runs: in an extractor, in `scope` or in `key`.
pub struct Tx<D: Dialect> {
    slot: TransactionSlot,
    open: OnceLock<Box<OpenTransaction<D>>>,
}

impl<D: Dialect, S: Sync> FromRequestParts<S> for Tx<D> {
    type Rejection = TxRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, TxRejection> {
        let Some(slot) = parts.extensions.get::<TransactionSlot>() else {
            tracing::error!(
                "a handler with an argument `Tx` has no `#[idempotent]`, and does not run; add the attribute"
            );
            return Err(TxRejection(()));
        };
        if !slot.want::<OpenTransaction<D>>() {
            tracing::error!("a handler has two arguments `Tx`, and does not run; leave one, and pass `&mut tx` on");
            return Err(TxRejection(()));
        }
        Ok(Self { slot: slot.clone(), open: OnceLock::new() })
    }
}

impl<D: Dialect> Tx<D> {
    #[allow(clippy::expect_used, reason = "the documented panic")]
    fn open(&self) -> &OpenTransaction<D> {
        self.open.get_or_init(|| {
            let open = self.slot.take::<OpenTransaction<D>>();
            Box::new(open.expect(
                "`Tx` is used before its transaction has begun; use it in the handler, not in an extractor, `scope` or `key`",
            ))
        })
    }
}

impl<D: Dialect> Deref for Tx<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        self.open().connection()
    }
}

impl<D: Dialect> DerefMut for Tx<D> {
    #[allow(clippy::expect_used, reason = "the line before opens it")]
    fn deref_mut(&mut self) -> &mut D::Connection {
        self.open();
        self.open.get_mut().expect("it is open").connection_mut()
    }
}

impl<D: Dialect> Drop for Tx<D> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.slot.put(*open);
        }
    }
}

impl<D: Dialect> fmt::Debug for Tx<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tx(..)")
    }
}

/// The response 500 to a request whose handler cannot have a [`Tx`]. The log says what to do.
#[derive(Debug)]
pub struct TxRejection(());

impl IntoResponse for TxRejection {
    fn into_response(self) -> Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

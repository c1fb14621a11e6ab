//! What the store needs of a database.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::remote::{Listener, Waiters};

use crate::errors::{MigrateError, Problem};

/// The database of an [`SqlStore`](crate::SqlStore): [`sqlx::Postgres`] or [`sqlx::Sqlite`].
///
/// Sealed: there are no others.
pub trait Dialect: sealed::Dialect {}

impl<D: sealed::Dialect> Dialect for D {}

/// How to connect to a database.
pub(crate) type Options<D> = <<D as sqlx::Database>::Connection as sqlx::Connection>::Options;

pub(crate) mod sealed {
    use super::*;

    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a database of `idem-sqlx`",
        note = "write `sqlx::Postgres` with the feature `postgres` of `idem-sqlx`, or `sqlx::Sqlite` with its feature `sqlite`",
        note = "they must be those of `sqlx` 0.9"
    )]
    pub trait Dialect: sqlx::Database {
        /// The name of the store, for `Debug`.
        const STORE: &'static str;

        /// The unit in which the statements count time.
        const TICK: Duration;

        /// Where the table is, and how to connect to it.
        type Location: fmt::Debug + Send + Sync + 'static;

        /// What the server calls a connection.
        type Session: Send + Sync + 'static;

        /// Names a server, for an error about several.
        fn address(options: &Options<Self>) -> String;

        /// Looks at a new connection. `Ok(Err(_))` says why the store cannot use it.
        fn greet(
            connection: &mut Self::Connection,
            must_take_writes: bool,
        ) -> impl Future<Output = Result<Result<Self::Session, Problem>, sqlx::Error>> + Send;

        /// Cancels a statement that a connection still runs although no caller waits for it, unless it may be that of another client.
        /// Returns whether one runs.
        fn cancel(
            connect: impl Future<Output = Result<Self::Connection, Problem>> + Send,
            session: &Self::Session,
            sql: &Arc<str>,
        ) -> impl Future<Output = Result<bool, Problem>> + Send;

        /// Runs one statement, which commits by itself.
        fn fetch(
            connection: &mut Self::Connection,
            sql: &Arc<str>,
            values: &[Value<'_>],
        ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

        /// Returns the bytes in a column, or `None` for NULL.
        fn bytes(row: &Self::Row, column: usize) -> Result<Option<Vec<u8>>, sqlx::Error>;

        /// Returns the number in a column, or `None` for NULL.
        fn number(row: &Self::Row, column: usize) -> Result<Option<i64>, sqlx::Error>;

        /// Returns the truth value in a column, or `None` for NULL.
        fn boolean(row: &Self::Row, column: usize) -> Result<Option<bool>, sqlx::Error>;

        /// Returns what an error means. `table` is quoted.
        fn problem(error: sqlx::Error, table: &str) -> Problem;

        /// Creates the table, or brings it up to date.
        fn migrate(location: &Self::Location) -> impl Future<Output = Result<(), MigrateError>> + Send;

        /// Begins a transaction that may write.
        const BEGIN: &'static str;

        /// Returns the number by which [`holder`](Statements::holder) names the session. `None` if the database has no sessions that
        /// can be asked for.
        const SESSION: Option<&'static str>;

        /// Returns how many rows the connection has changed, those included that were rolled back. `None` if the database never rolls
        /// a whole transaction back by itself.
        const CHANGES: Option<&'static str>;

        /// Commits, and begins an empty transaction: sqlx counts one, and ends it when the connection returns to its pool.
        const COMMIT: &'static str;

        /// Rolls back, and begins an empty transaction.
        const ROLLBACK: &'static str;

        /// Whether one transaction at a time may write to the database.
        const HAS_ONE_WRITER: bool;

        /// Returns bytes that tell the database from any other.
        const DATABASE: &'static str;

        /// What a parameter of a statement starts with.
        const PARAMETER: char;

        /// How long a step of a transaction may take.
        const STEP_TIMEOUT: Duration;

        /// Returns how many transactions with a claim may be open at once in a pool of this many connections.
        fn max_transactions(connections: usize) -> usize;

        /// Returns bytes as they are written in SQL.
        fn literal(bytes: &[u8]) -> String;

        /// Returns SQL that limits the time of each statement of a transaction.
        fn limit(timeout: Duration) -> String;

        /// Runs statements without values, one after the other, and returns the rows of all.
        fn run(
            connection: &mut Self::Connection,
            sql: String,
        ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

        /// Returns whether an error is a failure of the database, whatever it was asked for.
        fn is_own_failure(error: &sqlx::Error) -> bool;

        /// Returns what an error says of the transaction that was to be ended.
        fn transaction_state(error: &sqlx::Error) -> TransactionState;

        /// Makes sure that waiters are woken when the database sends a message. By default it sends none.
        fn ensure_listening(listener: &Listener, location: &Arc<Self::Location>, waiters: &Arc<Waiters>) {
            let _ = (listener, location, waiters);
        }

        /// Returns a duration in ticks. It is never shorter than the duration, not even by the part of a tick that the
        /// database's clock leaves out.
        fn ticks(duration: Duration) -> i64 {
            let ticks = duration.as_nanos().div_ceil(Self::TICK.as_nanos()) + 1;
            i64::try_from(ticks).unwrap_or(i64::MAX)
        }
    }
}

/// The longest lease or TTL. Longer ones are cut to it, so that every sum of times is a time of the database.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How long a claim is kept, counted from its last renewal: its lease, and then its TTL while it is abandoned. If it expired with
/// its lease, the key would be free while an owner that is cut off runs the handler.
pub(crate) fn retention(lease: Duration, ttl: Duration) -> Duration {
    lease.min(MAX_TTL) + ttl.min(MAX_TTL)
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionState {
    /// It is not there: other code has ended it.
    Gone,
    /// A statement failed in it, and it can only be rolled back.
    Aborted,
    /// It was as expected.
    Open,
}

/// A value that a statement is given.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// Bytes or NULL.
    Nullable(Option<&'a [u8]>),
    /// A number.
    Number(i64),
}

/// The lease of a claim that is seen only when its outcome is unknown.
pub(crate) const NO_LEASE: Value<'static> = Value::Number(0);

/// The statements of a store. If the owner of a claim has already done what a statement does, the statement does it again.
pub(crate) struct Statements {
    /// `key, owner`: the row of the key.
    pub(crate) look: Arc<str>,
    /// Whether looking before claiming is cheaper.
    pub(crate) looks_first: bool,
    /// `key, fingerprint, endpoint, policy`: the session whose transaction holds the key, whether it does so with another fingerprint,
    /// whether at this endpoint under another policy, and whether it has written. For databases in which a transaction that holds a key
    /// does not stop others.
    pub(crate) holder: Option<Arc<str>>,
    /// `key`: a row if the transaction has the lock of the key now, so that others find out that it holds the key. For the same
    /// databases.
    pub(crate) lock: Option<Arc<str>>,
    /// `session`: for how many milliseconds the transaction of a session has waited for its next statement. No row if it runs one, or
    /// is in no transaction. For databases in which a session can be asked for.
    pub(crate) idle: Option<Arc<str>>,
    /// `session, whether to cancel (1), microseconds since its transaction was known`: a row if it runs a statement, which is cancelled. For
    /// databases in which a session can be asked for.
    pub(crate) end: Option<Arc<str>>,
    /// `key, owner, fingerprint, lease, retention, info`: a claim, or the row that prevents it, or nothing if it has changed
    /// meanwhile.
    pub(crate) begin: Arc<str>,
    /// As `begin`, in a transaction of the caller. It may have more parameters: `endpoint, policy`.
    pub(crate) claim_in_transaction: Arc<str>,
    /// `key, owner, lease, retention`: a row if done.
    pub(crate) renew: Arc<str>,
    /// `key, owner, lease, retention, previous owner, fingerprint, info`: a row if done. Without an info, that of the previous
    /// owner stays.
    pub(crate) take_over: Arc<str>,
    /// `key, owner, record, ttl`: a row if done, which says whether other processes want to be notified.
    pub(crate) complete: Arc<str>,
    /// As `complete`, and quicker, in the transaction that has made the claim: its row is seen, and awaited, by no one else.
    pub(crate) complete_in_transaction: Arc<str>,
    /// `key, owner`: a row if done, which says the same.
    pub(crate) release: Arc<str>,
    /// `key`: the same, if something was removed.
    pub(crate) forget: Arc<str>,
    /// As `forget`, without waiting for a lock of the row. For databases in which others can hold one for long.
    pub(crate) forget_unlocked: Option<Arc<str>>,
    /// `key`: notifies other processes of the end of a claim. A statement by itself, so that its failure costs nothing else.
    pub(crate) notify: Option<Arc<str>>,
    /// `key`: the row, for operators.
    pub(crate) inspect: Arc<str>,
    /// `key, limit`: of this many rows that follow the key, those whose outcome is unknown, as `inspect`, and the last one; with their key
    /// and whether the outcome is unknown.
    pub(crate) unknown: Arc<str>,
    /// `key, owner`: a row if the claim has this owner now, and its lease has expired.
    pub(crate) revoke: Arc<str>,
    /// `key, owner, replays`: a row if they were added to those of the owner's record.
    pub(crate) count: Arc<str>,
    /// `key`: the milliseconds that are left of the lease, while the claim is in flight. Asks for a notification of its end.
    pub(crate) wait: Arc<str>,
    /// `key`: the same, without asking for a notification.
    pub(crate) poll: Arc<str>,
    /// `batch`: a row for each that it looked at, which says whether it was deleted.
    pub(crate) clean: Arc<str>,
}

/// Returns bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        digits.push(DIGITS[usize::from(byte >> 4)]);
        digits.push(DIGITS[usize::from(byte & 15)]);
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_ttl_that_a_policy_takes_is_kept_and_a_longer_one_is_cut() {
        let longest = Duration::from_secs(36_500 * 86_400);
        assert_eq!(retention(Duration::ZERO, longest), longest);
        assert_eq!(retention(Duration::MAX, Duration::MAX), 2 * longest);
    }
}

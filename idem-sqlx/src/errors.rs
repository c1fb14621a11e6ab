//! What can go wrong: what failed, what was not done, and what to do.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::StoreError;

use crate::names::InvalidName;
use crate::raised::again;

/// A step of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Claiming a key, or reporting what prevents it.
    Begin,
    /// Extending a lease, or taking an abandoned claim over.
    Renew,
    /// Replacing a claim by its record.
    Complete,
    /// Releasing a claim.
    Release,
    /// Committing the transaction of a handler, with its record.
    Commit,
    /// Removing a record or an abandoned claim.
    Forget,
    /// Reading the state of a key.
    Inspect,
    /// Taking a claim away from its owner.
    Revoke,
    /// Counting replays.
    Count,
    /// Waiting for the end of a claim.
    Wait,
    /// Deleting what has expired.
    Cleanup,
}

impl Step {
    /// What is not done when this step fails.
    fn undone(self) -> &'static str {
        match self {
            Self::Begin => "the handler does not run",
            Self::Renew => "it is unknown whether the lease was extended",
            Self::Complete => "it is unknown whether the response was recorded; if not, the claim stays",
            Self::Release => "it is unknown whether the claim was released",
            Self::Commit => "the handler ran, and what it wrote was rolled back, unless a retry finds its record",
            Self::Forget => "it is unknown whether anything was removed",
            Self::Inspect => "nothing was changed",
            Self::Revoke => "it is unknown whether the claim was taken away",
            Self::Count => "replays go uncounted",
            Self::Wait => "the waiter asks again",
            Self::Cleanup => "what has expired stays until the next cleanup",
        }
    }

    /// Whether it adds to what is there: if it may have taken effect, it is not to be repeated.
    pub(crate) fn adds(self) -> bool {
        self == Self::Count
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begin => "`begin`",
            Self::Renew => "`renew`",
            Self::Complete => "`complete`",
            Self::Release => "`release`",
            Self::Commit => "the commit of a handler's transaction",
            Self::Forget => "`forget`",
            Self::Inspect => "`inspect`",
            Self::Revoke => "`revoke`",
            Self::Count => "counting replays",
            Self::Wait => "waiting for the end of a claim",
            Self::Cleanup => "the cleanup",
        })
    }
}

/// A step that failed: the source of [`StoreError::Unavailable`], and of [`StoreError::Unreadable`].
///
/// ```
/// use idem_runtime::StoreError;
/// use idem_sqlx::{DatabaseError, Problem};
///
/// /// Returns whether `migrate()` was never called.
/// fn is_not_migrated(error: &StoreError) -> bool {
///     let StoreError::Unavailable(source) = error else { return false };
///     let found = source.downcast_ref::<DatabaseError>();
///     found.is_some_and(|error| matches!(error.problem, Problem::TableMissing { .. }))
/// }
/// assert!(!is_not_migrated(&StoreError::Full));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct DatabaseError {
    /// What the store was about to do.
    pub step: Step,
    /// Why it failed.
    pub problem: Problem,
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed, and {}: {}", self.step, self.step.undone(), self.problem)
    }
}

impl Error for DatabaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.error().map(|error| error as _)
    }
}

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError { step: Step::Begin, problem: Problem::Full(error) } if !is_failed_write(&error) => {
                Self::Full
            }
            error @ DatabaseError { problem: Problem::Damaged(_), .. } => Self::Unreadable(Arc::new(error)),
            error => Self::Unavailable(Arc::new(error)),
        }
    }
}

/// Why a step failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// All connections were in use.
    NoConnection {
        /// How many the store, or the pool that it was made from, may open.
        max_connections: usize,
        /// How long it waited for one.
        waited: Duration,
    },
    /// No connection could be made in time.
    Unreachable {
        /// How long the store may try.
        waited: Duration,
        /// The error of the last try, if there was one.
        source: Option<sqlx::Error>,
    },
    /// No reply in time. The statement may still take effect.
    TimedOut {
        /// How long the store waited.
        waited: Duration,
    },
    /// A new connection has a setting with which the store cannot keep its guarantees.
    Setting(&'static str),
    /// The table does not exist, or one of its functions.
    TableMissing {
        /// The table, as it is named in SQL.
        table: String,
    },
    /// The database does not take writes.
    ReadOnly,
    /// The disk, or the size that the store may have, is used up. Or SQLite could not write to its file, and does not say why.
    Full(sqlx::Error),
    /// Other transactions were in the way until the time ran out.
    Busy(sqlx::Error),
    /// Other requests changed the key each time it was looked at.
    Contended,
    /// The row cannot be what the store wrote.
    Damaged(&'static str),
    /// The connection broke.
    Broken(sqlx::Error),
    /// The server does not know a statement that was prepared on the connection, or that of another client, or refuses to run it.
    Stale(sqlx::Error),
    /// The database refused, or its reply was not understood.
    Refused(sqlx::Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConnection { max_connections, waited } => write!(
                f,
                "none of the {max_connections} connections of the store, or of the pool that it was made from, was free within {waited:?}. \
                 Find out what keeps the database busy, or raise `max_connections`"
            ),
            Self::Unreachable { waited, source } => {
                write!(f, "no connection to the database within {waited:?}")?;
                if let Some(source) = source {
                    write!(f, " ({source})")?;
                }
                f.write_str(". Check that it runs, that it is reachable, and that it has connections left")
            }
            Self::TimedOut { waited } => {
                write!(
                    f,
                    "no reply from the database within {waited:?}. Find out what keeps it busy, or raise `timeout`"
                )
            }
            Self::Setting(what) => f.write_str(what),
            Self::TableMissing { table } => {
                write!(
                    f,
                    "the table {table} does not exist, or lacks its functions. Call `migrate()` once before the first request; if \
                     the table was restored or made by hand, run what is missing of the crate's folder `migrations`"
                )
            }
            Self::ReadOnly => f.write_str(
                "the database is read-only. A standby, as after a failover: connect to the primary, with a URL that names \
                 both, or a proxy that follows it. A role with `default_transaction_read_only`: switch that off. A file: let this \
                 process write to it and to its folder",
            ),
            Self::Full(source) if is_failed_write(source) => write!(
                f,
                "SQLite could not write to its file ({source}), and does not say why. The file system may be read-only, as after an error \
                 of the disk, or a quota or a limit of this process is reached. Look into the log of the system, and make it writable, or \
                 make room"
            ),
            Self::Full(_) => f.write_str(
                "there is no room left on the database's disk, or in its quota. Make room, or call `clean_once()`",
            ),
            // SQLITE_BUSY_SNAPSHOT, which no `BEGIN` returns.
            Self::Busy(source) if is_of_sqlite(source, &["517"]) => write!(
                f,
                "its transaction has read, and another one has written since ({source}). Begin it with `BEGIN IMMEDIATE`, which \
                 waits for the other one, and repeat all of it"
            ),
            Self::Busy(source) => write!(
                f,
                "other transactions were in the way, or a time limit of the database ({source}). Find out what holds locks on the \
                 table, or what sets the limit"
            ),
            Self::Contended => f.write_str("other requests changed the key again and again. Try again"),
            Self::Damaged(how) => {
                write!(f, "the row under this key is {how}. Look at it, and delete it once its outcome is known")
            }
            Self::Broken(source) => write!(f, "the connection to the database broke ({source})"),
            Self::Stale(source) => write!(
                f,
                "the database does not run what was prepared on its connection ({source}), not even on a new one. A proxy \
                 in between must keep prepared statements (PgBouncer: `max_prepared_statements`); the table must be as `migrate()` made it"
            ),
            Self::Refused(source) => write!(f, "the database refused ({source})"),
        }
    }
}

impl Problem {
    /// The error of sqlx, if there was one.
    pub(crate) fn error(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Refused(error) | Self::Broken(error) | Self::Stale(error) | Self::Busy(error) | Self::Full(error) => {
                Some(error)
            }
            Self::Unreachable { source, .. } => source.as_ref(),
            _ => None,
        }
    }

    /// Whether the statement, once it was sent, may have taken effect, or may still do so.
    pub(crate) fn leaves_doubt(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Broken(_) => true,
            Self::Refused(error) => !is_from_server(error),
            _ => false,
        }
    }

    /// Returns the problem of an earlier try if this one only had too little time to learn what is wrong.
    pub(crate) fn or_earlier(self, earlier: Option<Self>) -> Self {
        match (self, earlier) {
            (Self::NoConnection { .. } | Self::Unreachable { source: None, .. }, Some(earlier)) => earlier,
            (Self::TimedOut { .. }, Some(Self::ReadOnly)) => Self::ReadOnly,
            (problem, _) => problem,
        }
    }

    /// Returns the problem of a new connection once more, for others who would have it as well.
    pub(crate) fn of_all_connections(&self) -> Option<Self> {
        match self {
            Self::ReadOnly => Some(Self::ReadOnly),
            Self::Setting(what) => Some(Self::Setting(what)),
            Self::Unreachable { waited, source } => {
                Some(Self::Unreachable { waited: *waited, source: source.as_ref().map(again) })
            }
            Self::Refused(error) => Some(Self::Refused(again(error))),
            _ => None,
        }
    }

    /// Which connections can be used after it.
    pub(crate) fn connection_health(&self) -> ConnectionHealth {
        match self {
            // What is wrong with one is likely to be wrong with the others.
            Self::TimedOut { .. } | Self::Broken(_) | Self::ReadOnly | Self::Stale(_) => ConnectionHealth::AllSuspect,
            // What comes next on it may be the reply to this statement.
            Self::Refused(error) if !is_from_server(error) => ConnectionHealth::Broken,
            // The server replied, and the connection is in order.
            _ => ConnectionHealth::Good,
        }
    }

    /// Whether the same statement is worth another try. It has the same owner token, so it cannot take effect twice.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::TimedOut { .. }
                | Self::Broken(_)
                | Self::Busy(_)
                | Self::Unreachable { .. }
                // A new connection may lead to the primary.
                | Self::ReadOnly
                | Self::Stale(_)
        )
    }
}

/// Which connections can be used after a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionHealth {
    /// All of them.
    Good,
    /// All but the one that had the problem.
    Broken,
    /// None: the others lead to the same server.
    AllSuspect,
}

/// Whether the server sent this error, so that the connection is in order and the statement had no effect.
fn is_from_server(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_))
}

/// The longest `timeout` of a step.
const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Refuses a `timeout` that cannot work.
pub(crate) fn check_timeout(timeout: Duration) -> Result<(), ConnectError> {
    if timeout.is_zero() {
        return Err(ConnectError::Setting("`timeout` is 0, and no step could succeed; set a few seconds"));
    }
    if timeout > MAX_TIMEOUT {
        return Err(ConnectError::Setting(
            "`timeout` is longer than an hour; set a few seconds, the engine waits for 5",
        ));
    }
    Ok(())
}

/// Why a store could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name of a schema or table is not valid.
    Name(InvalidName),
    /// A setting that cannot work.
    Setting(&'static str),
    /// The URL is not one of this database.
    Url(sqlx::Error),
    /// No connection could be made.
    Connection(sqlx::Error),
    /// No connection could be made in time.
    TimedOut(Duration),
}

/// Whether an error has one of these codes of SQLite. Those of PostgreSQL have five characters.
fn is_of_sqlite(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| codes.contains(&&*code))
}

/// Whether SQLite could not open its file: SQLITE_CANTOPEN or SQLITE_NOTADB.
fn is_about_a_file(error: &sqlx::Error) -> bool {
    is_of_sqlite(error, &["14", "26"])
}

/// Whether SQLite could not write to its file, for a reason other than a full disk: SQLITE_IOERR_WRITE.
fn is_failed_write(error: &sqlx::Error) -> bool {
    is_of_sqlite(error, &["778"])
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Setting(what) => write!(f, "the store was not opened: {what}"),
            Self::Url(source) => write!(
                f,
                "the store was not opened: the URL is not understood ({source}). Write postgres://user@host/database, or sqlite:file?mode=rwc"
            ),
            Self::Connection(source) if is_about_a_file(source) => write!(
                f,
                "the store was not opened: {source}. Check that the file is a database of SQLite, or \
                 that its folder exists and this process may write there. `open` creates a file that does not exist, and `connect` only \
                 if its URL has `?mode=rwc`"
            ),
            Self::Connection(source) => write!(
                f,
                "the store was not opened: no connection to the database ({source}). Check its address, that it runs, \
                 and that it lets this user in"
            ),
            Self::TimedOut(waited) => write!(
                f,
                "the store was not opened: no connection to the database within {waited:?}. Check its address and that it \
                 runs"
            ),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Name(name) => Some(name),
            Self::Url(source) | Self::Connection(source) => Some(source),
            Self::Setting(_) | Self::TimedOut(_) => None,
        }
    }
}

impl From<InvalidName> for ConnectError {
    fn from(name: InvalidName) -> Self {
        Self::Name(name)
    }
}

/// Why `migrate` did not bring the table up to date.
#[derive(Debug)]
#[non_exhaustive]
pub enum MigrateError {
    /// The table has a version with which this version of the crate does not work.
    Newer {
        /// That version of the table.
        found: i64,
        /// The latest version that this crate knows.
        known: i64,
    },
    /// The database refused, could not be reached, or is an SQLite database in memory.
    Database(sqlx::Error),
    /// Not done in time.
    TimedOut(Duration),
}

/// Whether what was to be created is there: `duplicate_table`, or an error of SQLite, which has no code for it.
fn exists(error: &sqlx::Error) -> bool {
    let Some(refused) = error.as_database_error() else { return false };
    refused.code().as_deref() == Some("42P07")
        || is_of_sqlite(error, &["1"]) && refused.message().contains("already exists")
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer { found, known } => write!(
                f,
                "nothing was migrated: the table has version {found}, and this `idem-sqlx` knows versions up to {known}. \
                 Use the version of `idem-sqlx` that made it, or a later one"
            ),
            // It says what to do.
            Self::Database(source @ sqlx::Error::Configuration(_)) => write!(f, "nothing was migrated: {source}"),
            Self::Database(source) if exists(source) => write!(
                f,
                "nothing was migrated: {source}. If it was made from the shipped .sql files, leave out `migrate()`; if other code \
                 has made it, choose another name with the builder's `table`"
            ),
            Self::Database(source) => write!(
                f,
                "nothing was migrated: the database refused ({source}). The user needs the right to create the schema \
                 and its tables; otherwise run the shipped .sql files by hand"
            ),
            Self::TimedOut(waited) => write!(
                f,
                "it is unknown whether anything was migrated: no reply within {waited:?}. Call `migrate()` again; it does \
                 nothing twice"
            ),
        }
    }
}

impl Error for MigrateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Database(source) => Some(source),
            Self::Newer { .. } | Self::TimedOut(_) => None,
        }
    }
}

impl From<sqlx::Error> for MigrateError {
    fn from(source: sqlx::Error) -> Self {
        Self::Database(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raised::raised;

    fn failure() -> sqlx::Error {
        sqlx::Error::Protocol("a byte too many".into())
    }

    #[test]
    fn a_failed_step_is_named_with_what_it_leaves_and_why() {
        let error = DatabaseError { step: Step::Renew, problem: Problem::ReadOnly };
        let start = "`renew` failed, and it is unknown whether the lease was extended: the database is read-only. ";
        assert!(error.to_string().starts_with(start), "{error}");
        let error = MigrateError::Newer { found: 7, known: 3 };
        let start = "nothing was migrated: the table has version 7, and this `idem-sqlx` knows versions up to 3. ";
        assert!(error.to_string().starts_with(start), "{error}");
    }

    #[test]
    fn an_error_names_what_caused_it() {
        let cause = |error: &dyn Error| error.source().map(ToString::to_string);
        let of_step = |problem| cause(&DatabaseError { step: Step::Begin, problem });
        let waited = Duration::from_secs(1);
        let expected = Some(failure().to_string());
        let unreachable = |source| Problem::Unreachable { waited, source };
        let problems = [Problem::Refused, Problem::Broken, Problem::Stale, Problem::Busy, Problem::Full];
        for problem in problems.map(|problem| problem(failure())).into_iter().chain([unreachable(Some(failure()))]) {
            let shown = problem.to_string();
            assert_eq!(of_step(problem), expected, "{shown}");
        }
        assert_eq!(of_step(unreachable(None)), None);
        let busy = Problem::Busy(failure()).to_string();
        assert!(busy.contains(&failure().to_string()), "{busy}");
        assert_eq!(cause(&ConnectError::Url(failure())), expected);
        assert_eq!(cause(&ConnectError::Connection(failure())), expected);
        assert_eq!(cause(&MigrateError::Database(failure())), expected);
        let name = || crate::names::check("a b").unwrap_err();
        assert_eq!(cause(&ConnectError::Name(name())), Some(name().to_string()));
    }

    /// As on a file system that the kernel has made read-only after an error of the disk.
    #[test]
    fn a_write_that_sqlite_does_not_explain_is_not_called_a_lack_of_room() {
        let begin = |code, message| DatabaseError { step: Step::Begin, problem: Problem::Full(raised(code, message)) };
        assert!(matches!(begin("13", "database or disk is full").into(), StoreError::Full));
        let StoreError::Unavailable(source) = begin("778", "disk I/O error").into() else { panic!("not full") };
        let text = source.to_string();
        assert!(text.contains("disk I/O error") && text.contains("read-only") && text.contains("quota"), "{text}");
    }

    #[test]
    fn a_try_without_time_says_what_the_one_before_learned() {
        let waited = Duration::from_secs(1);
        let none = || Problem::NoConnection { max_connections: 1, waited };
        let unreachable = || Problem::Unreachable { waited, source: None };
        for (last, earlier, expected) in [
            (none(), Problem::ReadOnly, "ReadOnly"),
            (none(), Problem::Broken(failure()), "Broken"),
            (unreachable(), Problem::Unreachable { waited, source: Some(failure()) }, "source: Some"),
            (unreachable(), Problem::TimedOut { waited }, "TimedOut"),
            (Problem::TimedOut { waited }, Problem::ReadOnly, "ReadOnly"),
            (Problem::Unreachable { waited, source: Some(failure()) }, Problem::ReadOnly, "source: Some"),
            // This try may have taken effect, and the one before says nothing about it.
            (Problem::TimedOut { waited }, Problem::Busy(failure()), "TimedOut"),
            (Problem::Broken(failure()), Problem::ReadOnly, "Broken"),
        ] {
            let problem = format!("{:?}", last.or_earlier(Some(earlier)));
            assert!(problem.contains(expected), "{expected}: {problem}");
        }
        assert!(matches!(none().or_earlier(None), Problem::NoConnection { .. }));
    }

    /// Otherwise each of many steps would make a connection to learn it.
    #[test]
    fn what_is_wrong_with_a_new_connection_is_told_to_others_and_what_is_wrong_with_a_statement_is_not() {
        let waited = Duration::from_secs(1);
        for problem in [
            Problem::ReadOnly,
            Problem::Setting("`synchronous_commit` is not `on`"),
            Problem::Unreachable { waited, source: Some(failure()) },
            Problem::Unreachable { waited, source: None },
            Problem::Refused(failure()),
        ] {
            assert_eq!(format!("{:?}", problem.of_all_connections()), format!("{:?}", Some(&problem)));
        }
        let none = Problem::NoConnection { max_connections: 1, waited };
        for problem in [none, Problem::TimedOut { waited }, Problem::Busy(failure()), Problem::Contended] {
            assert!(problem.of_all_connections().is_none(), "{problem:?}");
        }
    }

    #[test]
    fn only_an_error_about_a_file_sends_the_reader_to_a_file() {
        let shown = |error| ConnectError::Connection(error).to_string();
        for code in ["14", "26"] {
            let text = shown(raised(code, "as asked"));
            assert!(text.contains("as asked. Check that the file is a database of SQLite"), "{code}: {text}");
        }
        for error in [raised("28P01", "as asked"), std::io::Error::other("as asked").into()] {
            let text = shown(error);
            assert!(text.contains("as asked). Check its address") && !text.contains("file"), "{text}");
        }
    }

    #[test]
    fn a_timeout_is_more_than_nothing_and_an_hour_at_most() {
        for accepted in [Duration::from_nanos(1), Duration::from_secs(3600)] {
            check_timeout(accepted).unwrap();
        }
        for refused in [Duration::ZERO, Duration::from_secs(3601)] {
            assert!(matches!(check_timeout(refused), Err(ConnectError::Setting(_))), "{refused:?}");
        }
    }
}

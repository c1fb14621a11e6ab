//! What can go wrong: what failed, what was not done, and what to do.

mod problem;
mod setup;

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use idem_runtime::StoreError;

pub(crate) use self::problem::ConnectionHealth;
pub use self::problem::Problem;
pub(crate) use self::setup::check_timeout;
pub use self::setup::{ConnectError, MigrateError};

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

/// Whether an error has one of these codes of SQLite. Those of PostgreSQL have five characters.
fn is_of_sqlite(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| codes.contains(&&*code))
}

/// Whether SQLite could not write to its file, for a reason other than a full disk: SQLITE_IOERR_WRITE.
fn is_failed_write(error: &sqlx::Error) -> bool {
    is_of_sqlite(error, &["778"])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::raised::{failure, raised};

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
}

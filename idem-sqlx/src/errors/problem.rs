//! Why a step failed, and what follows for the connection and for another try.

use std::fmt;
use std::time::Duration;

use super::{is_failed_write, is_of_sqlite};
use crate::raised::again;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raised::failure;

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
}

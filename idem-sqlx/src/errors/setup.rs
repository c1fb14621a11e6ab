//! Why a store could not be opened, or its table not be made.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::is_of_sqlite;
use crate::names::InvalidName;

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

/// Whether SQLite could not open its file: SQLITE_CANTOPEN or SQLITE_NOTADB.
fn is_about_a_file(error: &sqlx::Error) -> bool {
    is_of_sqlite(error, &["14", "26"])
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
            // The reply to a commit may be lost.
            Self::Database(source @ sqlx::Error::Io(_)) => write!(
                f,
                "it is unknown whether anything was migrated: the connection failed ({source}). Call `migrate()` again; it does \
                 nothing twice"
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
    fn a_migration_whose_connection_broke_does_not_say_that_nothing_was_migrated() {
        let broke = MigrateError::Database(std::io::Error::other("as asked").into()).to_string();
        assert!(broke.contains("unknown whether") && broke.contains("as asked"), "{broke}");
        assert!(broke.contains("Call `migrate()` again") && !broke.contains("right"), "{broke}");
        let refused = MigrateError::Database(raised("42501", "as asked")).to_string();
        assert!(refused.contains("nothing was migrated") && refused.contains("needs the right"), "{refused}");
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

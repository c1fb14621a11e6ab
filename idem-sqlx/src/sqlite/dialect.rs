//! The dialect of SQLite.

use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row, Sqlite};

use super::{Location, migrations};
use crate::dialect::{TransactionState, Value, hex, sealed};
use crate::errors::{MigrateError, Problem};

/// Returns the extended code of an error. It has the primary one in its lowest byte: <https://sqlite.org/rescode.html>.
fn code(refused: &dyn DatabaseError) -> u32 {
    refused.code().and_then(|code| code.parse().ok()).unwrap_or(0)
}

impl sealed::Dialect for Sqlite {
    const STORE: &'static str = "SqliteStore";

    const TICK: Duration = Duration::from_millis(1);

    type Location = Location;

    type Session = ();

    fn address(options: &SqliteConnectOptions) -> String {
        options.get_filename().display().to_string()
    }

    async fn greet(_: &mut SqliteConnection, _: bool) -> Result<Result<(), Problem>, sqlx::Error> {
        Ok(Ok(()))
    }

    /// A statement ends by itself: it waits for other writers no longer than the busy timeout.
    async fn cancel(
        _: impl Future<Output = Result<SqliteConnection, Problem>> + Send,
        (): &(),
        _: &Arc<str>,
    ) -> Result<bool, Problem> {
        Ok(true)
    }

    async fn fetch(
        connection: &mut SqliteConnection,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        // Only checked names are put into these texts. What is bound goes to another thread, so it is owned.
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
        for value in values {
            query = match *value {
                Value::Bytes(bytes) => query.bind(bytes.to_vec()),
                Value::Nullable(bytes) => query.bind(bytes.map(<[u8]>::to_vec)),
                Value::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(connection).await
    }

    fn bytes(row: &SqliteRow, column: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
        row.try_get(column)
    }

    fn number(row: &SqliteRow, column: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(column)
    }

    fn boolean(row: &SqliteRow, column: usize) -> Result<Option<bool>, sqlx::Error> {
        row.try_get(column)
    }

    fn problem(error: sqlx::Error, table: &str) -> Problem {
        let refused = match &error {
            sqlx::Error::Database(refused) => refused,
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => return Problem::Broken(error),
            _ => return Problem::Refused(error),
        };
        let code = code(&**refused);
        match code & 0xff {
            // BUSY, LOCKED.
            5 | 6 => Problem::Busy(error),
            8 => Problem::ReadOnly,
            // IOERR_WRITE: beyond a quota, or the limit of a process, or the file system has become read-only. FULL is only for the disk.
            10 if code == 778 => Problem::Full(error),
            // IOERR. The file may be another one by now, and a commit that was not synced may come back after a crash.
            10 => Problem::Broken(error),
            13 => Problem::Full(error),
            // ERROR, with no code that says which. A mistake here only costs the hint.
            1 if refused.message().starts_with("no such table") => Problem::TableMissing { table: table.to_owned() },
            _ => Problem::Refused(error),
        }
    }

    async fn migrate(location: &Location) -> Result<(), MigrateError> {
        migrations::run(location).await
    }

    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    const SESSION: Option<&'static str> = None;

    const CHANGES: Option<&'static str> = Some("SELECT total_changes()");

    const COMMIT: &'static str = "COMMIT; BEGIN";

    const ROLLBACK: &'static str = "ROLLBACK; BEGIN";

    const HAS_ONE_WRITER: bool = true;

    /// The path of the file. A database in memory has none.
    const DATABASE: &'static str = "SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'";

    const PARAMETER: char = '?';

    /// More than the busy timeout of any connection should be: the step may wait for a writer in another process.
    const STEP_TIMEOUT: Duration = Duration::from_secs(60);

    /// There is one writer.
    fn max_transactions(_: usize) -> usize {
        1
    }

    fn literal(bytes: &[u8]) -> String {
        format!("x'{}'", hex(bytes))
    }

    /// SQLite does not limit the time of a statement.
    fn limit(_: Duration) -> String {
        String::new()
    }

    async fn run(connection: &mut SqliteConnection, sql: String) -> Result<Vec<SqliteRow>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await
    }

    /// NOMEM, CORRUPT, CANTOPEN, PROTOCOL.
    fn is_own_failure(error: &sqlx::Error) -> bool {
        error.as_database_error().is_some_and(|refused| matches!(code(refused) & 0xff, 7 | 11 | 14 | 15))
    }

    fn transaction_state(error: &sqlx::Error) -> TransactionState {
        // ERROR, with no code that says which.
        let gone = ["no such savepoint", "cannot rollback - no transaction is active"];
        match error.as_database_error() {
            Some(refused) if gone.iter().any(|start| refused.message().starts_with(start)) => TransactionState::Gone,
            _ => TransactionState::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::sealed::Dialect;
    use crate::raised::raised;

    #[test]
    fn an_error_means_what_its_code_says() {
        let problem = |code, text| Sqlite::problem(raised(code, text), "t");
        // The last one is BUSY_SNAPSHOT.
        for code in ["5", "6", "517"] {
            assert!(matches!(problem(code, "locked"), Problem::Busy(_)), "{code}");
        }
        assert!(matches!(problem("8", "read-only"), Problem::ReadOnly));
        // The last one is of a file that may not grow, as under a quota.
        for code in ["13", "778"] {
            assert!(matches!(problem(code, "full"), Problem::Full(_)), "{code}");
        }
        // Read, short read, sync.
        for code in ["266", "522", "1034"] {
            assert!(matches!(problem(code, "disk I/O error"), Problem::Broken(_)), "{code}");
        }
        assert!(matches!(problem("1", "no such table: t"), Problem::TableMissing { table } if table == "t"));
        for (code, text) in [("1", "no such column: c"), ("26", "not a database")] {
            assert!(matches!(problem(code, text), Problem::Refused(_)), "{code}");
        }
        for error in [sqlx::Error::WorkerCrashed, std::io::Error::other("gone").into()] {
            assert!(matches!(Sqlite::problem(error, "t"), Problem::Broken(_)));
        }
    }

    #[test]
    fn a_file_that_fails_is_told_from_a_statement_that_is_wrong() {
        for (code, fails) in [("7", true), ("11", true), ("526", true), ("15", true), ("1", false), ("1811", false)] {
            assert_eq!(Sqlite::is_own_failure(&raised(code, "as asked")), fails, "{code}");
        }
    }

    #[test]
    fn a_transaction_is_gone_if_its_savepoint_is_or_if_there_is_none() {
        let state = |text| Sqlite::transaction_state(&raised("1", text));
        assert_eq!(state("no such savepoint: idem"), TransactionState::Gone);
        assert_eq!(state("cannot rollback - no transaction is active"), TransactionState::Gone);
        assert_eq!(state("cannot commit"), TransactionState::Open);
    }
}

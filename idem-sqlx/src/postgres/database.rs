//! PostgreSQL, as the core asks it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};

use crate::database::{Database, Seen, Shown, Table, Value};
use crate::errors::Problem;

pub(crate) enum Postgres {}

impl Database for Postgres {
    type Connection = PgConnection;
    type Row = PgRow;

    async fn ask(
        connection: &mut PgConnection,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        // Nothing but checked names is ever put into these texts.
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
        for value in values {
            query = match *value {
                Value::Bytes(bytes) => query.bind(bytes),
                Value::Maybe(bytes) => query.bind(bytes),
                Value::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(connection).await
    }

    fn problem(error: sqlx::Error, table: &Table) -> Problem {
        let code = match &error {
            sqlx::Error::Database(refused) => refused.code(),
            sqlx::Error::Io(_) => return Problem::Broken(error),
            _ => return Problem::Refused(error),
        };
        match code.as_deref() {
            // Serialization failure, deadlock, lock not available, cancelled by its time limit: rolled back, all of them.
            Some("40001" | "40P01" | "55P03" | "57014") => Problem::Busy(error),
            // Shut down, crashed, starting up, and failures of the connection: this connection is done for.
            Some("57P01" | "57P02" | "57P03" | "57P05") => Problem::Broken(error),
            Some(code) if code.starts_with("08") => Problem::Broken(error),
            // A prepared statement that is not there, or whose plan does not fit the table any more.
            Some("26000" | "0A000") => Problem::Stale(error),
            Some("42P01" | "3F000") => Problem::TableMissing { table: table.quoted.clone() },
            // An undefined column.
            Some("42703") => Problem::TableOutdated { table: table.quoted.clone() },
            Some("25006") => Problem::ReadOnly,
            Some("53100") => Problem::Full(error),
            _ => Problem::Refused(error),
        }
    }

    const TICK: Duration = Duration::from_micros(1);

    /// Microseconds, and one more for the part that `clock_timestamp()` leaves out.
    fn ticks(duration: Duration) -> i64 {
        i64::try_from(duration.as_nanos().div_ceil(1000) + 1).unwrap_or(i64::MAX)
    }

    fn seen(row: &PgRow) -> Result<Seen, sqlx::Error> {
        let Some(owner) = row.try_get(0)? else { return Ok(Seen::Claimed) };
        Ok(Seen::Standing { owner, fingerprint: row.try_get(1)?, record: row.try_get(2)?, lapsed: row.try_get(3)? })
    }

    fn shown(row: &PgRow) -> Result<Shown, sqlx::Error> {
        Ok(Shown {
            fingerprint: row.try_get(0)?,
            record: row.try_get(1)?,
            lapsed: row.try_get(2)?,
            origin: row.try_get(3)?,
            lease_until: row.try_get(4)?,
            expires_at: row.try_get(5)?,
            replays: row.try_get(6)?,
        })
    }

    fn number(row: &PgRow) -> Result<i64, sqlx::Error> {
        row.try_get(0)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::fmt;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;
    use crate::errors::Spoils;

    #[derive(Debug)]
    struct Said(&'static str);

    impl fmt::Display for Said {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Said {}

    impl DatabaseError for Said {
        fn message(&self) -> &str {
            self.0
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    /// What becomes of the connections, whether the step is tried again, and whether it may have taken effect.
    fn follows(error: sqlx::Error) -> (Spoils, bool, bool) {
        let problem = Postgres::problem(error, &Table { quoted: "t".into() });
        (problem.spoils(), problem.may_pass(), problem.leaves_doubt())
    }

    #[test]
    fn a_connection_is_used_again_only_after_answers_that_say_nothing_against_it() {
        let said = |code| sqlx::Error::Database(Box::new(Said(code)));
        for code in ["42P01", "53100", "23505", "42501"] {
            assert_eq!(follows(said(code)), (Spoils::Nothing, false, false), "{code}");
        }
        assert_eq!(follows(said("40001")), (Spoils::Nothing, true, false));
        for code in ["25006", "26000", "0A000"] {
            assert_eq!(follows(said(code)), (Spoils::All, true, false), "{code}");
        }
        for code in ["57P01", "08006"] {
            assert_eq!(follows(said(code)), (Spoils::All, true, true), "{code}");
        }
        assert_eq!(follows(std::io::Error::other("reset").into()), (Spoils::All, true, true));
        for error in [sqlx::Error::Protocol("out of step".into()), sqlx::Error::WorkerCrashed] {
            assert_eq!(follows(error), (Spoils::Connection, false, true));
        }
    }
}

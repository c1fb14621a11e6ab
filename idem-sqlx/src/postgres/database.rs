//! PostgreSQL, as the core asks it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};

use crate::database::{Database, Seen, Table, Value};
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
            Some("42P01" | "3F000") => Problem::TableMissing { table: table.quoted.clone() },
            Some("25006") => Problem::ReadOnly,
            Some("53100") => Problem::Full(error),
            _ => Problem::Refused(error),
        }
    }

    /// Microseconds, and one more for the part that `clock_timestamp()` leaves out.
    fn ticks(duration: Duration) -> i64 {
        i64::try_from(duration.as_nanos().div_ceil(1000) + 1).unwrap_or(i64::MAX)
    }

    fn seen(row: &PgRow) -> Result<Seen, sqlx::Error> {
        let Some(owner) = row.try_get(0)? else { return Ok(Seen::Claimed) };
        Ok(Seen::Standing { owner, fingerprint: row.try_get(1)?, record: row.try_get(2)?, lapsed: row.try_get(3)? })
    }

    fn number(row: &PgRow) -> Result<i64, sqlx::Error> {
        row.try_get(0)
    }
}

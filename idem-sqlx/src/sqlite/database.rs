//! SQLite, as the core asks it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use crate::database::{Database, Seen, Shown, Table, Value};
use crate::errors::Problem;

pub(crate) enum Sqlite {}

impl Database for Sqlite {
    type Connection = SqliteConnection;
    type Row = SqliteRow;

    async fn ask(
        connection: &mut SqliteConnection,
        sql: &Arc<str>,
        values: &[Value<'_>],
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        // Nothing but checked names is ever put into these texts. What is bound goes to another thread, so it is owned.
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
        for value in values {
            query = match *value {
                Value::Bytes(bytes) => query.bind(bytes.to_vec()),
                Value::Maybe(bytes) => query.bind(bytes.map(<[u8]>::to_vec)),
                Value::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(connection).await
    }

    fn problem(error: sqlx::Error, table: &Table) -> Problem {
        let refused = match &error {
            sqlx::Error::Database(refused) => refused,
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => return Problem::Broken(error),
            _ => return Problem::Refused(error),
        };
        // An extended code has the primary one in its lowest byte: <https://sqlite.org/rescode.html>.
        let code = refused.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or(0) & 0xff;
        match code {
            // BUSY, LOCKED.
            5 | 6 => Problem::Busy(error),
            8 => Problem::ReadOnly,
            13 => Problem::Full(error),
            // ERROR, with no code that says which. A mistake here only costs the hint.
            1 if refused.message().starts_with("no such table") => {
                Problem::TableMissing { table: table.quoted.clone() }
            }
            1 if refused.message().contains("no such column") || refused.message().contains("has no column named") => {
                Problem::TableOutdated { table: table.quoted.clone() }
            }
            _ => Problem::Refused(error),
        }
    }

    const TICK: Duration = Duration::from_millis(1);

    /// Milliseconds, and one more for the part that the clock leaves out.
    fn ticks(duration: Duration) -> i64 {
        i64::try_from(duration.as_nanos().div_ceil(1_000_000) + 1).unwrap_or(i64::MAX)
    }

    fn seen(row: &SqliteRow) -> Result<Seen, sqlx::Error> {
        let Some(owner) = row.try_get(0)? else { return Ok(Seen::Claimed) };
        Ok(Seen::Standing { owner, fingerprint: row.try_get(1)?, record: row.try_get(2)?, lapsed: row.try_get(3)? })
    }

    fn shown(row: &SqliteRow) -> Result<Shown, sqlx::Error> {
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

    fn number(row: &SqliteRow) -> Result<i64, sqlx::Error> {
        row.try_get(0)
    }
}

//! SQLite: one prepared statement for each step, on one connection.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use idem_runtime::StorageKey;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row, SqliteConnection};

use super::{OWNER, expect};
use crate::Failure;
use crate::stores::subject::{LEASE, Steps, TTL, checksummed, fingerprint};

const BEGIN: &str = "INSERT INTO bare (key, owner, fingerprint, lease_until, expires_at) VALUES (?1, ?2, ?3, ?4, ?5) \
     ON CONFLICT (key) DO NOTHING RETURNING 1";
const COMPLETE: &str = "UPDATE bare SET record = ?3, expires_at = ?4 WHERE key = ?1 AND owner = ?2 RETURNING 1";
const READ: &str = "SELECT owner, fingerprint, record FROM bare WHERE key = ?1";

/// A connection with the settings of those that `SqliteStore` has, and its own table with the same columns and index.
#[derive(Debug)]
pub struct BareSqlite {
    connection: SqliteConnection,
    record: Bytes,
}

impl BareSqlite {
    /// Opens the file. The table `bare` must be there.
    ///
    /// # Errors
    /// There is no such file.
    pub async fn open(file: &Path) -> Result<Self, Failure> {
        let connection = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(2))
            .disable_statement_logging()
            .connect()
            .await?;
        Ok(Self { connection, record: checksummed() })
    }
}

/// Milliseconds since 1970.
fn in_future(by: Duration) -> Result<i64, Failure> {
    Ok(i64::try_from((SystemTime::now() + by).duration_since(UNIX_EPOCH)?.as_millis())?)
}

impl Steps for BareSqlite {
    async fn execute(&mut self, key: &StorageKey) -> Result<(), Failure> {
        let key = key.as_bytes().to_vec();
        let begin = sqlx::query(BEGIN).bind(key.clone()).bind(OWNER.to_vec()).bind(fingerprint().as_bytes().to_vec());
        let begin = begin.bind(in_future(LEASE)?).bind(in_future(TTL)?);
        let begun = begin.fetch_all(&mut self.connection).await?;
        expect(begun.len() == 1, "a new key was there")?;
        let complete = sqlx::query(COMPLETE).bind(key).bind(OWNER.to_vec()).bind(self.record.to_vec());
        let done = complete.bind(in_future(TTL)?).fetch_all(&mut self.connection).await?;
        expect(done.len() == 1, "the claim was not there")
    }

    async fn replay(&mut self, key: &StorageKey) -> Result<(), Failure> {
        let rows = sqlx::query(READ).bind(key.as_bytes().to_vec()).fetch_all(&mut self.connection).await?;
        let record: Vec<u8> = rows.first().ok_or("a recorded key was not there")?.try_get(2)?;
        expect(record == self.record, "the record is another")
    }
}

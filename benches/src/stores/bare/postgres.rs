//! PostgreSQL: one prepared statement for each step, on one connection.

use std::str::FromStr;

use bytes::Bytes;
use idem_runtime::StorageKey;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row};

use super::{OWNER, expect};
use crate::Failure;
use crate::stores::subject::{LEASE, Steps, TTL, checksummed, fingerprint};

const BEGIN: &str = "INSERT INTO bare (key, owner, fingerprint, lease_until, expires_at, clean_after) \
     VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 microsecond', clock_timestamp() + $5 * interval '1 microsecond', \
         clock_timestamp() + $5 * interval '1 microsecond') \
     ON CONFLICT (key) DO NOTHING RETURNING 1";
const COMPLETE: &str = "UPDATE bare SET record = $3, expires_at = clock_timestamp() + $4 * interval '1 microsecond' \
     WHERE key = $1 AND owner = $2 RETURNING 1";
const READ: &str = "SELECT owner, fingerprint, record FROM bare WHERE key = $1";

/// A connection with the settings of those that `PostgresStore` has, and its own table with the same columns and index.
#[derive(Debug)]
pub struct BarePostgres {
    connection: PgConnection,
    record: Bytes,
    lease: i64,
    ttl: i64,
}

impl BarePostgres {
    /// Connects. The table `bare` must be there.
    ///
    /// # Errors
    /// There is no such server.
    pub async fn connect(url: &str) -> Result<Self, Failure> {
        let connection = PgConnectOptions::from_str(url)?
            .options([
                ("synchronous_commit", "on"),
                ("default_transaction_isolation", "read committed"),
                ("statement_timeout", "2000"),
            ])
            .disable_statement_logging()
            .connect()
            .await?;
        let (lease, ttl) = (i64::try_from(LEASE.as_micros())?, i64::try_from(TTL.as_micros())?);
        Ok(Self { connection, record: checksummed(), lease, ttl })
    }
}

impl Steps for BarePostgres {
    async fn execute(&mut self, key: &StorageKey) -> Result<(), Failure> {
        let fingerprint = fingerprint();
        let begin = sqlx::query(BEGIN).bind(&key.as_bytes()[..]).bind(&OWNER[..]).bind(&fingerprint.as_bytes()[..]);
        let begun = begin.bind(self.lease).bind(self.ttl).fetch_all(&mut self.connection).await?;
        expect(begun.len() == 1, "a new key was there")?;
        let complete = sqlx::query(COMPLETE).bind(&key.as_bytes()[..]).bind(&OWNER[..]).bind(&self.record[..]);
        let done = complete.bind(self.ttl).fetch_all(&mut self.connection).await?;
        expect(done.len() == 1, "the claim was not there")
    }

    async fn replay(&mut self, key: &StorageKey) -> Result<(), Failure> {
        let rows = sqlx::query(READ).bind(&key.as_bytes()[..]).fetch_all(&mut self.connection).await?;
        let record: Vec<u8> = rows.first().ok_or("a recorded key was not there")?.try_get(2)?;
        expect(record == self.record, "the record is another")
    }
}

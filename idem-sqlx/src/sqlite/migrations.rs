//! Creating the table.

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::Location;
use crate::errors::MigrateError;
use crate::migrations::{MAX_TIME, due, fill_in, in_time};

/// The migrations in their order. What was released is never changed; a later version adds one.
const ALL: &[&str] = &[include_str!("../../migrations/sqlite/0001_table.sql")];

pub(super) async fn run(location: &Location) -> Result<(), MigrateError> {
    let work = async {
        // It waits for other migrations, and longer than a step would.
        let mut connection = location.options.clone().busy_timeout(MAX_TIME).connect().await?;
        migrate(&mut connection, &location.table).await?;
        // Everything is committed, so a failure to close changes nothing.
        let _ = connection.close().await;
        Ok(())
    };
    in_time(work).await
}

async fn migrate(connection: &mut SqliteConnection, table: &str) -> Result<(), MigrateError> {
    // Writing from the start: a transaction that first reads and then writes is refused if another has written in between.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let versions = format!("\"{table}_migrations\"");
    let create = format!("CREATE TABLE IF NOT EXISTS {versions} (version INTEGER NOT NULL PRIMARY KEY) STRICT");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    let latest = format!("SELECT coalesce(max(version), 0) FROM {versions}");
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(latest)).fetch_one(&mut *transaction).await?;
    for (version, text) in due(ALL, found)? {
        let text = fill_in(text, &format!("\"{table}\""), &format!("\"{table}_expires_at\""));
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await?;
        let note = format!("INSERT INTO {versions} (version) VALUES (?1)");
        sqlx::query(AssertSqlSafe(note)).bind(version).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

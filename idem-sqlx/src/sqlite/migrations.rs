//! Creating the table.

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::{Location, NEEDS_A_FILE};
use crate::errors::MigrateError;
use crate::migrations::{MIGRATION_TIMEOUT, Migration, due, fill_in, in_time};

/// The migrations in their order. What was released is never changed; a later version adds one.
const ALL: &[Migration] =
    &[Migration { text: include_str!("../../migrations/sqlite/0001_table.sql"), is_additive: false }];

pub(super) async fn run(location: &Location) -> Result<(), MigrateError> {
    let work = async {
        // It waits for other migrations, and longer than a step would.
        let mut connection = location.hosts.last().busy_timeout(MIGRATION_TIMEOUT).connect().await?;
        if !has_file(&mut connection).await? {
            return Err(sqlx::Error::Configuration(NEEDS_A_FILE.into()).into());
        }
        migrate(&mut connection, &location.table).await?;
        // Everything is committed, so a failure to close changes nothing.
        let _ = connection.close().await;
        Ok(())
    };
    in_time(work).await
}

/// A pool does not tell whether its database is in memory, where the table would vanish with this connection.
async fn has_file(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let file = "SELECT coalesce(file, '') <> '' FROM pragma_database_list WHERE name = 'main'";
    sqlx::query_scalar(file).fetch_one(connection).await
}

async fn migrate(connection: &mut SqliteConnection, table: &str) -> Result<(), MigrateError> {
    // Writing from the start: a transaction that first reads and then writes is refused if another has written in between.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let versions = format!("\"{table}_migrations\"");
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {versions} (version INTEGER NOT NULL PRIMARY KEY, \
         is_additive INTEGER NOT NULL DEFAULT 0) STRICT"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    let latest = format!(
        "SELECT coalesce(max(version), 0), coalesce(max(version) FILTER (WHERE NOT is_additive), 0) FROM {versions}"
    );
    let (found, breaking): (i64, i64) = sqlx::query_as(AssertSqlSafe(latest)).fetch_one(&mut *transaction).await?;
    for (version, migration) in due(ALL, found, breaking)? {
        let text = fill_in(
            migration.text,
            &[("{table}", &format!("\"{table}\"")), ("{index}", &format!("\"{table}_expires_at\""))],
        );
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await?;
        let note = format!("INSERT INTO {versions} (version, is_additive) VALUES (?1, ?2)");
        sqlx::query(AssertSqlSafe(note)).bind(version).bind(migration.is_additive).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

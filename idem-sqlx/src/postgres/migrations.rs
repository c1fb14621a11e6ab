//! Creating the table.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::time::timeout;

use super::Shared;
use crate::errors::MigrateError;
use crate::migrations::{due, fill_in};

/// The migrations in their order. What was released is never changed; a later version adds one.
const ALL: &[&str] = &[
    include_str!("../../migrations/postgres/0001_table.sql"),
    include_str!("../../migrations/postgres/0002_origin.sql"),
];
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(shared: &Shared) -> Result<(), MigrateError> {
    let work = async {
        let mut connection = shared.options.connect().await?;
        migrate(&mut connection, shared).await?;
        // Everything is committed, so a goodbye that fails changes nothing.
        let _ = connection.close().await;
        Ok(())
    };
    timeout(PATIENCE, work).await.unwrap_or(Err(MigrateError::TimedOut(PATIENCE)))
}

async fn migrate(connection: &mut PgConnection, shared: &Shared) -> Result<(), MigrateError> {
    let mut transaction = connection.begin().await?;
    // One after the other, in the whole database: `CREATE .. IF NOT EXISTS` alone fails where two run at once.
    sqlx::raw_sql("SET LOCAL statement_timeout = '60s'").execute(&mut *transaction).await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('idem-sqlx', 0))").execute(&mut *transaction).await?;
    let schema_is_there: bool = sqlx::query_scalar("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL")
        .bind(&shared.names.schema)
        .fetch_one(&mut *transaction)
        .await?;
    if !schema_is_there {
        let create = format!("CREATE SCHEMA \"{}\"", shared.names.schema);
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    }
    let versions = shared.names.quoted("_migrations");
    // Without `IF NOT EXISTS`, which needs the right to create tables even where there is nothing to create.
    let versions_are_there: bool =
        sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(&versions).fetch_one(&mut *transaction).await?;
    if !versions_are_there {
        let create = format!(
            "CREATE TABLE {versions} (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    }
    let latest = format!("SELECT coalesce(max(version), 0) FROM {versions}");
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(latest)).fetch_one(&mut *transaction).await?;
    for (version, text) in due(ALL, found)? {
        let index = format!("\"{}_expires_at\"", shared.names.table);
        let text = fill_in(text, &shared.names.quoted(""), &index);
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await?;
        let note = format!("INSERT INTO {versions} (version) VALUES ($1)");
        sqlx::query(AssertSqlSafe(note)).bind(version).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

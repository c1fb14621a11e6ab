//! Creating the table.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::Location;
use crate::errors::MigrateError;
use crate::migrations::{due, fill_in, in_time};

/// The migrations in their order. What was released is never changed; a later version adds one.
const ALL: &[&str] = &[include_str!("../../migrations/postgres/0001_table.sql")];

pub(super) async fn run(location: &Location) -> Result<(), MigrateError> {
    let work = async {
        let mut connection = location.options.connect().await?;
        migrate(&mut connection, location).await?;
        // Everything is committed, so a failure to close changes nothing.
        let _ = connection.close().await;
        Ok(())
    };
    in_time(work).await
}

async fn migrate(connection: &mut PgConnection, location: &Location) -> Result<(), MigrateError> {
    let mut transaction = connection.begin().await?;
    // One after the other, in the whole database: `CREATE .. IF NOT EXISTS` alone fails if two run at once.
    sqlx::raw_sql("SET LOCAL statement_timeout = '60s'").execute(&mut *transaction).await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('idem-sqlx', 0))").execute(&mut *transaction).await?;
    let schema_is_there: bool = sqlx::query_scalar("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL")
        .bind(&location.schema)
        .fetch_one(&mut *transaction)
        .await?;
    if !schema_is_there {
        let create = format!("CREATE SCHEMA \"{}\"", location.schema);
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    }
    let versions = location.quoted("_migrations");
    // Without `IF NOT EXISTS`, which needs the right to create tables even if there is nothing to create.
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
        let index = format!("\"{}_expires_at\"", location.table);
        let text = fill_in(text, &location.quoted(""), &index);
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await?;
        let note = format!("INSERT INTO {versions} (version) VALUES ($1)");
        sqlx::query(AssertSqlSafe(note)).bind(version).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

//! Creating the table.

use std::time::Duration;

use idem_runtime::remote::jitter;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::{Instant, sleep};

use super::Location;
use super::statements::{CLAIM, COMPLETE};
use crate::errors::{MigrateError, Problem};
use crate::migrations::{MIGRATION_TIMEOUT, Migration, due, fill_in, in_time};

/// The migrations in their order. What was released is never changed; a later version adds one.
const ALL: &[Migration] =
    &[Migration { text: include_str!("../../migrations/postgres/0001_table.sql"), is_additive: false }];

/// How long a migration waits for a lock. Statements of the running version that come after it wait as long.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '300ms'; SET LOCAL statement_timeout = '60s'";
/// The pause before the next try, in which those statements get their turn.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(location: &Location) -> Result<(), MigrateError> {
    run_all(location, ALL).await
}

async fn run_all(location: &Location, all: &[Migration]) -> Result<(), MigrateError> {
    let work = async {
        let connected = location.hosts.connect(Instant::now() + MIGRATION_TIMEOUT, MIGRATION_TIMEOUT).await;
        let (mut connection, _) = connected.map_err(no_connection)?;
        while let Err(error) = migrate(&mut connection, location, all).await {
            match &error {
                MigrateError::Database(sqlx::Error::Database(refused))
                    if refused.code().as_deref() == Some("55P03") =>
                {
                    tracing::debug!(%error, "another transaction is in the way of a migration; trying again");
                }
                _ => return Err(error),
            }
            sleep(jitter(PAUSE)).await;
        }
        // Everything is committed, so a failure to close changes nothing.
        let _ = connection.close().await;
        Ok(())
    };
    in_time(work).await
}

fn no_connection(problem: Problem) -> MigrateError {
    match problem {
        Problem::Refused(error) | Problem::Unreachable { source: Some(error), .. } => MigrateError::Database(error),
        Problem::Setting(what) => MigrateError::Database(sqlx::Error::Configuration(what.into())),
        _ => MigrateError::TimedOut(MIGRATION_TIMEOUT),
    }
}

async fn migrate(connection: &mut PgConnection, location: &Location, all: &[Migration]) -> Result<(), MigrateError> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(LOCK_TIMEOUT).execute(&mut *transaction).await?;
    // One after the other, in the whole database: `CREATE .. IF NOT EXISTS` alone fails if two run at once.
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
            "CREATE TABLE {versions} (version bigint PRIMARY KEY, is_additive boolean NOT NULL DEFAULT false, \
             applied_at timestamptz NOT NULL DEFAULT now())"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
    }
    let latest = format!(
        "SELECT coalesce(max(version), 0), coalesce(max(version) FILTER (WHERE NOT is_additive), 0) FROM {versions}"
    );
    let (found, breaking): (i64, i64) = sqlx::query_as(AssertSqlSafe(latest)).fetch_one(&mut *transaction).await?;
    for (version, migration) in due(all, found, breaking)? {
        let names = [
            ("{table}", location.quoted("")),
            ("{index}", format!("\"{}_clean_after\"", location.table)),
            ("{claim}", location.quoted(CLAIM)),
            ("{complete}", location.quoted(COMPLETE)),
        ];
        let text = fill_in(migration.text, &names.each_ref().map(|(placeholder, name)| (*placeholder, &**name)));
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *transaction).await?;
        let note = format!("INSERT INTO {versions} (version, is_additive) VALUES ($1, $2)");
        sqlx::query(AssertSqlSafe(note)).bind(version).bind(migration.is_additive).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use idem_runtime::{Begin, BeginOptions, Fingerprint, StorageKey, Store};
    use idem_testkit::postgres::Postgres;
    use sqlx::Executor;

    use super::*;
    use crate::PostgresStore;

    const LATER: Migration =
        Migration { text: "ALTER TABLE {table} ADD COLUMN later bigint NOT NULL DEFAULT 0", is_additive: true };

    async fn begins(store: &PostgresStore, number: u8) -> bool {
        let options = BeginOptions::new(Duration::from_secs(30), Duration::from_secs(60));
        let (key, fingerprint) = (StorageKey::from_bytes([number; 32]), Fingerprint::from_bytes([1; 32]));
        matches!(store.begin(&key, &fingerprint, &options).await, Ok(Begin::Claimed(_)))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn beside_a_long_transaction_the_running_version_goes_on_and_its_migrate_accepts_what_was_added() {
        let server = Postgres::quick().await;
        let running = PostgresStore::connect(&server.url()).await.unwrap();
        running.migrate().await.unwrap();
        let mut other = PgConnection::connect(&server.url()).await.unwrap();
        let mut long = other.begin().await.unwrap();
        long.execute("SELECT count(*) FROM idempotency").await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let migrates = tokio::spawn({
            let (store, done) = (running.clone(), Arc::clone(&done));
            async move {
                run_all(store.location(), &[ALL[0], LATER]).await.unwrap();
                done.store(true, Ordering::SeqCst);
            }
        });
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'";
        for number in 0..3 {
            while server.sql(waits).trim() == "0" {
                assert!(!migrates.is_finished(), "the migration does not wait for the transaction");
            }
            assert!(begins(&running, number).await, "an insert beside a migration that waits");
        }
        assert!(!done.load(Ordering::SeqCst), "the transaction is still open");
        long.rollback().await.unwrap();
        migrates.await.unwrap();
        running.migrate().await.unwrap();
        assert!(begins(&running, 9).await);
        assert_eq!(server.sql("SELECT max(version) FROM idempotency_migrations").trim(), "2");
    }
}

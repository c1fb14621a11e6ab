//! Handlers whose effect is a row in the database of the store, within the transaction of their record.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idem_axum::{Idempotency, IdempotencyBuilder, IdempotencyKey, idempotent};
use idem_sqlx::{PostgresStore, SqliteStore, Tx};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{PgPool, Postgres, Sqlite, SqlitePool};
use tokio::time::sleep;

use crate::cluster::effects::{Kind, Line};
use idem_testkit::dice::Dice;

/// The code of a response to a request whose handler could not reach the database.
pub const DATABASE_FAILED: &str = "database_failed";

type DatabaseFailed = (StatusCode, String);

/// Makes the table of the effects.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS effects (key text NOT NULL, execution text NOT NULL)";

macro_rules! endpoint {
    ($name:ident, $database:ty) => {
        /// Takes a few milliseconds, half of them before the effect and half after it.
        #[idempotent(required)]
        async fn $name(mut tx: Tx<$database>, key: IdempotencyKey) -> Result<(StatusCode, String), DatabaseFailed> {
            let failed = |_| (StatusCode::SERVICE_UNAVAILABLE, format!("{{\"code\":\"{DATABASE_FAILED}\"}}"));
            let execution = format!("{:016x}", Dice::unseeded().roll());
            sleep(Dice::unseeded().millis(0..=10)).await;
            let insert = sqlx::query("INSERT INTO effects VALUES ($1, $2)").bind(key.as_str()).bind(&execution);
            insert.execute(&mut *tx).await.map_err(failed)?;
            sleep(Dice::unseeded().millis(0..=10)).await;
            Ok((StatusCode::CREATED, execution))
        }
    };
}

endpoint!(over_postgres, Postgres);
endpoint!(over_sqlite, Sqlite);

async fn open_sqlite(path: &str) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePool::connect_with(options.journal_mode(SqliteJournalMode::Wal)).await.expect("the file can be opened")
}

/// What follows the path of a file of SQLite, before a number: with this many steps of the transactions of its handlers the process
/// ends, as by `kill -9`.
pub const STEPS: &str = "?steps=";

/// A pool of one connection. A step is an instruction of SQLite, and its last one ends the process: within a statement or after it, and
/// so before the next one.
fn with_steps(path: &str, steps: u64) -> SqlitePool {
    let options = SqlitePoolOptions::new().max_connections(1).after_connect(move |connection, _| {
        Box::pin(async move {
            let mut taken = 0;
            connection.lock_handle().await?.set_progress_handler(1, move || {
                taken += 1;
                if taken == steps {
                    std::process::abort();
                }
                true
            });
            Ok(())
        })
    });
    options.connect_lazy_with(SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal))
}

/// The service over the database at `url`.
///
/// # Panics
/// If it cannot be opened.
pub async fn service(url: &str) -> (Router, IdempotencyBuilder) {
    if let Some(path) = url.strip_prefix("sqlite://") {
        let (path, steps) = path.split_once(STEPS).unwrap_or((path, ""));
        let pool = open_sqlite(path).await;
        SqliteStore::from_pool(pool.clone()).migrate().await.expect("the table can be made");
        sqlx::raw_sql(TABLE).execute(&pool).await.expect("the table can be made");
        // What makes the tables is no step.
        let store = SqliteStore::from_pool(steps.parse().map_or(pool, |steps| with_steps(path, steps)));
        return (Router::new().route("/transfers", post(over_sqlite)), Idempotency::builder(store));
    }
    let pool = PgPool::connect(url).await.expect("the database lets us in");
    let store = PostgresStore::from_pool(pool.clone());
    // One process after the other, as `migrate` does.
    store.migrate().await.expect("the table can be made");
    let create = format!("BEGIN; SELECT pg_advisory_xact_lock(1); {TABLE}; COMMIT");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&pool).await.expect("the table can be made");
    (Router::new().route("/transfers", post(over_postgres)), Idempotency::builder(store))
}

/// The effects in the database at `url`.
///
/// # Panics
/// If they cannot be read.
pub async fn effects(url: &str) -> Vec<Line> {
    let select = "SELECT key, execution FROM effects";
    let rows: Result<Vec<(String, String)>, _> = match url.strip_prefix("sqlite://") {
        Some(path) => sqlx::query_as(select).fetch_all(&open_sqlite(path).await).await,
        None => sqlx::query_as(select).fetch_all(&PgPool::connect(url).await.expect("the database lets us in")).await,
    };
    let line = |(key, execution)| Line { kind: Kind::Effect, key, execution };
    rows.expect("the effects can be read").into_iter().map(line).collect()
}

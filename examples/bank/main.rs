//! A bank: a transfer takes effect exactly once, since its record and its bookings are one commit. Run it, and try the `curl` lines
//! that it prints:
//!
//! ```console
//! $ cargo run --example bank --features bank
//! ```
//!
//! The money is in SQLite, in a temporary file, or in PostgreSQL or another file if `DATABASE_URL` says so. `examples/bank/kill` kills
//! the service in the middle of its work, again and again, and shows that the money is right.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::str::FromStr;

use axum::Router;
use idem_axum::Idempotency;
use idem_sqlx::{PostgresStore, SqliteStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{PgPool, SqlitePool};
use tokio::{net::TcpListener, signal};

/// The endpoints over one database. The texts of the statements are the same for both.
macro_rules! bank {
    ($name:ident, $database:ty) => {
        mod $name {
            use axum::extract::State;
            use axum::http::StatusCode;
            use axum::routing::{get, post};
            use axum::{Json, Router};
            use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
            use idem_sqlx::Tx;
            use sqlx::Pool;

            use super::{Account, Failure, NewTransfer, Transfer};

            #[idempotent(required, ttl = "7d")]
            async fn transfer(
                mut tx: Tx<$database>,
                Json(new): Json<NewTransfer>,
            ) -> Result<(StatusCode, Json<Transfer>), Failure> {
                let NewTransfer { from, to, amount } = new;
                let debit = "UPDATE accounts SET balance = balance - $1 WHERE id = $2 AND balance >= $1";
                let debited = sqlx::query(debit).bind(amount).bind(from).execute(&mut *tx).await?;
                if amount <= 0 || debited.rows_affected() == 0 {
                    return Err(Failure::NoMoney);
                }
                let credit = "UPDATE accounts SET balance = balance + $1 WHERE id = $2";
                let credited = sqlx::query(credit).bind(amount).bind(to).execute(&mut *tx).await?;
                if credited.rows_affected() == 0 {
                    // The debit is rolled back, as everything is with a status of 400 or above.
                    return Err(Failure::NoAccount);
                }
                let book = "INSERT INTO transfers (debtor, creditor, amount) VALUES ($1, $2, $3) RETURNING id";
                let booked = sqlx::query_scalar(book).bind(from).bind(to).bind(amount);
                let id = booked.fetch_one(&mut *tx).await?;
                Ok((StatusCode::CREATED, Json(Transfer { id, from, to, amount })))
            }

            async fn balances(State(pool): State<Pool<$database>>) -> Result<Json<Vec<Account>>, Failure> {
                let accounts = sqlx::query_as("SELECT id, balance FROM accounts ORDER BY id").fetch_all(&pool).await?;
                let account = |(id, balance)| Account { id, balance };
                Ok(Json(accounts.into_iter().map(account).collect()))
            }

            async fn transfers(State(pool): State<Pool<$database>>) -> Result<Json<i64>, Failure> {
                Ok(Json(sqlx::query_scalar("SELECT count(*) FROM transfers").fetch_one(&pool).await?))
            }

            pub(super) fn routes(pool: Pool<$database>, idempotency: Idempotency) -> Router {
                Router::new()
                    .route("/transfers", post(transfer).get(transfers))
                    .route("/balances", get(balances))
                    .layer(IdempotencyLayer::new(idempotency))
                    .with_state(pool)
            }
        }
    };
}

bank!(over_postgres, sqlx::Postgres);
bank!(over_sqlite, sqlx::Sqlite);

async fn open_postgres(url: &str) -> Result<(Router, Idempotency), Box<dyn std::error::Error>> {
    let pool = PgPool::connect(url).await?;
    let accounts =
        "CREATE TABLE IF NOT EXISTS accounts (id bigint PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0))";
    sqlx::query(accounts).execute(&pool).await?;
    let transfers = "CREATE TABLE IF NOT EXISTS transfers (id bigserial PRIMARY KEY, \
                     debtor bigint NOT NULL, creditor bigint NOT NULL, amount bigint NOT NULL)";
    sqlx::query(transfers).execute(&pool).await?;
    sqlx::query(OPEN_ACCOUNTS).execute(&pool).await?;
    // The store shares the pool of the handlers.
    let store = PostgresStore::from_pool(pool.clone());
    store.migrate().await?;
    tokio::spawn(store.cleanup());
    let idempotency = Idempotency::builder(store).namespace("bank").build();
    Ok((over_postgres::routes(pool, idempotency.clone()), idempotency))
}

async fn open_sqlite(url: &str) -> Result<(Router, Idempotency), Box<dyn std::error::Error>> {
    let options = SqliteConnectOptions::from_str(url)?.create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePool::connect_with(options).await?;
    let accounts =
        "CREATE TABLE IF NOT EXISTS accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0))";
    sqlx::query(accounts).execute(&pool).await?;
    let transfers = "CREATE TABLE IF NOT EXISTS transfers (id INTEGER PRIMARY KEY AUTOINCREMENT, \
                     debtor INTEGER NOT NULL, creditor INTEGER NOT NULL, amount INTEGER NOT NULL)";
    sqlx::query(transfers).execute(&pool).await?;
    sqlx::query(OPEN_ACCOUNTS).execute(&pool).await?;
    let store = SqliteStore::from_pool(pool.clone());
    store.migrate().await?;
    tokio::spawn(store.cleanup());
    let idempotency = Idempotency::builder(store).namespace("bank").build();
    Ok((over_sqlite::routes(pool, idempotency.clone()), idempotency))
}

/// Three accounts with 1,000 each.
const OPEN_ACCOUNTS: &str = "INSERT INTO accounts VALUES (1, 1000), (2, 1000), (3, 1000) ON CONFLICT DO NOTHING";

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("The bank does not open: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    // It is deleted when this function ends.
    let folder;
    let url = match std::env::var("DATABASE_URL") {
        Ok(url) => url,
        Err(_) => {
            folder = tempfile::tempdir()?;
            format!("sqlite:{}/bank.db", folder.path().display())
        }
    };
    let (app, idempotency) =
        if url.starts_with("sqlite:") { open_sqlite(&url).await? } else { open_postgres(&url).await? };
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned()).parse()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{}", welcome(&format!("http://{}", listener.local_addr()?)));
    axum::serve(listener, app).with_graceful_shutdown(async { _ = signal::ctrl_c().await }).await?;
    idempotency.drain().await;
    Ok(())
}

fn welcome(url: &str) -> String {
    let transfer =
        "-H 'Idempotency-Key: rent-1' -H 'Content-Type: application/json' -d '{\"from\":1,\"to\":2,\"amount\":40}'";
    format!(
        "\
The bank is open at {url}. Try this in another terminal; ctrl-c closes it.

# A transfer: 201.
curl -i {url}/transfers {transfer}

# The same line again: the same transfer, marked, and no second one.
curl -i {url}/transfers {transfer}

# The money.
curl {url}/balances
"
    )
}

#[derive(serde::Deserialize)]
struct NewTransfer {
    from: i64,
    to: i64,
    amount: i64,
}

#[derive(serde::Serialize)]
struct Transfer {
    id: i64,
    from: i64,
    to: i64,
    amount: i64,
}

#[derive(serde::Serialize)]
struct Account {
    id: i64,
    balance: i64,
}

/// Why there is no transfer.
#[derive(Debug)]
enum Failure {
    NoMoney,
    NoAccount,
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        use axum::http::StatusCode;
        match self {
            // Recorded: a retry learns the same.
            Self::NoMoney => {
                (StatusCode::PAYMENT_REQUIRED, "there is not enough money in the account\n").into_response()
            }
            Self::NoAccount => (StatusCode::NOT_FOUND, "there is no such account\n").into_response(),
            // Not recorded: a retry runs again.
            Self::Database(error) => {
                eprintln!("The database failed: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

//! A consumer of a queue that delivers some messages more than once. Run it:
//!
//! ```console
//! $ DATABASE_URL=postgres://postgres@localhost/postgres cargo run --example consumer --features jobs
//! ```
//!
//! The queue is a table of PostgreSQL, in a schema that the example creates and drops. Two consumers take messages from it. Some messages
//! are there twice, some acknowledgements are lost, and one message repeats an id with other contents. Each order is shipped exactly
//! once: its id, its parcel and the recorded value are one commit.

use std::error::Error;
use std::time::Duration;

use idem_axum::{Idempotency, RefusalReason};
use idem_sqlx::{OnceExt, PostgresStore};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgExecutor, PgPool};

/// How long a consumer waits if there are only messages that another one has taken.
const PAUSE: Duration = Duration::from_millis(25);
/// How long the value of an order is kept: for longer than the queue keeps delivering its message.
const WEEK: Duration = Duration::from_secs(7 * 86_400);

#[derive(Clone)]
struct App {
    idempotency: Idempotency,
    pool: PgPool,
}

#[derive(Clone, Debug, Serialize)]
struct Order {
    id: i64,
    item: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Parcel {
    number: i64,
}

#[derive(Debug)]
enum ShipError {
    Database(sqlx::Error),
    Refused(RefusalReason),
}

impl From<sqlx::Error> for ShipError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<RefusalReason> for ShipError {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(reason)
    }
}

/// Ships an order.
async fn ship(tx: &mut PgConnection, order: &Order) -> Result<Parcel, ShipError> {
    let insert = sqlx::query_scalar("INSERT INTO parcels (order_id, item) VALUES ($1, $2) RETURNING number");
    let number = insert.bind(order.id).bind(&order.item).fetch_one(tx).await?;
    Ok(Parcel { number })
}

/// Ships an order once, however often its message is delivered.
async fn ship_once(app: &App, order: &Order) -> Result<Parcel, ShipError> {
    let mut tx = app.pool.begin().await?;
    let once = app.idempotency.once("ship", order.id.to_string()).ttl(WEEK).fingerprint(order);
    let parcel = once.run_in(&mut tx, async |tx| ship(tx, order).await).await?;
    tx.commit().await?;
    Ok(parcel)
}

/// A message, as the queue delivers it.
struct Message {
    id: i64,
    order_id: i64,
    item: String,
    deliveries: i64,
}

/// Takes messages until there are none.
async fn consume(app: App, name: &str) -> Result<(), sqlx::Error> {
    while let Some(message) = next(&app.pool).await? {
        let order = Order { id: message.order_id, item: message.item.clone() };
        let what = format!("{name}: message {}, order {} of {}", message.id, order.id, order.item);
        match ship_once(&app, &order).await {
            // The process dies between the commit and the acknowledgement, say.
            Ok(parcel) if message.id % 3 == 0 && message.deliveries == 1 => {
                println!("{what}: parcel {}, and the acknowledgement is lost", parcel.number);
            }
            Ok(parcel) => {
                println!("{what}: parcel {}", parcel.number);
                acknowledge(&app.pool, message.id).await?;
            }
            // Nothing was done: the queue delivers it again.
            Err(ShipError::Database(error)) => println!("{what}: {error}"),
            Err(ShipError::Refused(reason)) if reason.is_retryable() => {
                println!("{what}: later, since {reason} {:?}", reason.source())
            }
            // No delivery would go better.
            Err(ShipError::Refused(reason)) => {
                println!("{what}: to the dead letters, since {reason}");
                // In one commit, so that a message is neither lost nor buried twice.
                let mut tx = app.pool.begin().await?;
                let bury = "INSERT INTO dead_letters (message_id, reason) VALUES ($1, $2)";
                sqlx::query(bury).bind(message.id).bind(reason.to_string()).execute(&mut *tx).await?;
                acknowledge(&mut *tx, message.id).await?;
                tx.commit().await?;
            }
        }
    }
    Ok(())
}

/// Takes the next message, which is delivered again if it is not acknowledged soon. `None` if the queue is empty.
async fn next(pool: &PgPool) -> Result<Option<Message>, sqlx::Error> {
    // Two consumers do not wait for each other.
    let take = "UPDATE messages SET deliveries = deliveries + 1, hidden_until = now() + interval '100 milliseconds' WHERE id = \
        (SELECT id FROM messages WHERE hidden_until <= now() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) \
        RETURNING id, order_id, item, deliveries";
    loop {
        if let Some((id, order_id, item, deliveries)) = sqlx::query_as(take).fetch_optional(pool).await? {
            return Ok(Some(Message { id, order_id, item, deliveries }));
        }
        if sqlx::query_scalar::<_, i64>("SELECT count(*) FROM messages").fetch_one(pool).await? == 0 {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn acknowledge(database: impl PgExecutor<'_>, message: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM messages WHERE id = $1").bind(message).execute(database).await?;
    Ok(())
}

const TABLES: &str = "
    CREATE TABLE messages (id bigserial PRIMARY KEY, order_id bigint NOT NULL, item text NOT NULL,
        deliveries bigint NOT NULL DEFAULT 0, hidden_until timestamptz NOT NULL DEFAULT now());
    CREATE TABLE parcels (number bigserial PRIMARY KEY, order_id bigint NOT NULL, item text NOT NULL);
    CREATE TABLE dead_letters (message_id bigint NOT NULL, reason text NOT NULL);
    INSERT INTO messages (order_id, item) VALUES (1, 'tea'), (2, 'tea'), (3, 'cups'), (1, 'tea'), (4, 'tea'), (5, 'a pot'),
        (3, 'cups'), (6, 'tea'), (7, 'tea'), (2, 'tea'), (8, 'spoons'), (5, 'a pot'), (7, 'coffee')";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL")
        .map_err(|_| "set `DATABASE_URL`, as in postgres://postgres@localhost/postgres")?;
    let schema = format!("idem_consumer_{}", std::process::id());
    let options = url.parse::<PgConnectOptions>()?.options([("search_path", &schema)]);
    let pool = PgPoolOptions::new().max_connections(5).connect_with(options).await?;
    let store = PostgresStore::builder().schema(&schema).with_pool(pool.clone())?;
    // It creates the schema as well.
    store.migrate().await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    let app = App { idempotency: Idempotency::builder(store).namespace("consumer").build(), pool };

    let (first, second) = tokio::join!(consume(app.clone(), "first"), consume(app.clone(), "second"));
    first?;
    second?;

    let count = |sql| sqlx::query_scalar::<_, i64>(sql).fetch_one(&app.pool);
    println!(
        "orders: {}, parcels: {}, dead letters: {}",
        count("SELECT count(DISTINCT order_id) FROM parcels").await?,
        count("SELECT count(*) FROM parcels").await?,
        count("SELECT count(*) FROM dead_letters").await?,
    );
    app.idempotency.drain().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&app.pool).await?;
    app.pool.close().await;
    Ok(())
}

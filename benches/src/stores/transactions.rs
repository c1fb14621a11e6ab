//! `Tx` beside a bare transaction, a record that is written by hand and a store with leases: the same handler over HTTP, in rounds in
//! which they take turns.

use std::fmt::Write;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
use idem_sqlx::{PostgresStore, Tx};
use idem_testkit::postgres::Postgres as Server;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{PgPool, Postgres};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Failure;
use crate::sample::Series;
use crate::stores::place::Place;
use crate::stores::round_trips::RoundTrips;

/// In how many slices the rows take turns within a round.
const SLICES: u64 = 10;
/// How many requests the counting of round trips takes.
const COUNTED: u64 = 16;

/// As of a disk that takes longer: the server waits 2 ms before it writes what a commit has to have on the disk.
const SLOWER: [&str; 2] = ["commit_delay = 2000", "commit_siblings = 0"];

const TABLES: &str = "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL); \
     CREATE TABLE transfers (id bigserial PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL); \
     CREATE TABLE by_hand (key text PRIMARY KEY, request bytea NOT NULL, response bytea, expires_at timestamptz NOT NULL); \
     CREATE INDEX ON by_hand (expires_at); \
     INSERT INTO accounts SELECT number, 0 FROM generate_series(0, 99) AS number";

#[derive(Deserialize)]
struct NewTransfer {
    account: i64,
    amount: i64,
}

#[derive(Serialize)]
struct Transfer {
    id: i64,
    balance: i64,
}

/// What each of the handlers does.
async fn transfer(
    connection: &mut PgConnection,
    new: NewTransfer,
) -> Result<(StatusCode, Json<Transfer>), sqlx::Error> {
    let credit = "UPDATE accounts SET balance = balance + $2 WHERE id = $1 RETURNING balance";
    let balance = sqlx::query_scalar(credit).bind(new.account).bind(new.amount).fetch_one(&mut *connection).await?;
    let insert = "INSERT INTO transfers (account, amount) VALUES ($1, $2) RETURNING id";
    let id = sqlx::query_scalar(insert).bind(new.account).bind(new.amount).fetch_one(connection).await?;
    Ok((StatusCode::CREATED, Json(Transfer { id, balance })))
}

type Transferred = Result<(StatusCode, Json<Transfer>), StatusCode>;

fn failed(error: sqlx::Error) -> StatusCode {
    eprintln!("a transfer failed: {error}");
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn in_own_transaction(pool: &PgPool, new: NewTransfer) -> Result<(StatusCode, Json<Transfer>), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let transferred = transfer(&mut transaction, new).await?;
    transaction.commit().await?;
    Ok(transferred)
}

async fn bare(State(pool): State<PgPool>, Json(new): Json<NewTransfer>) -> Transferred {
    in_own_transaction(&pool, new).await.map_err(failed)
}

/// What a service writes that has no library for it. What to do with a key that is there is left out.
async fn by_hand(State(pool): State<PgPool>, headers: HeaderMap, Json(new): Json<NewTransfer>) -> Transferred {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).ok_or(StatusCode::BAD_REQUEST)?;
    let request = Sha256::digest(format!("{} {}", new.account, new.amount));
    let recorded = async {
        let mut transaction = pool.begin().await?;
        let insert = "INSERT INTO by_hand (key, request, expires_at) VALUES ($1, $2, now() + interval '1 day') \
             ON CONFLICT DO NOTHING RETURNING 1";
        sqlx::query(insert).bind(key).bind(&request[..]).fetch_one(&mut *transaction).await?;
        let (status, Json(transferred)) = transfer(&mut transaction, new).await?;
        let update = "UPDATE by_hand SET response = $2 WHERE key = $1";
        let response = serde_json::to_vec(&transferred).map_err(|error| sqlx::Error::Encode(error.into()))?;
        sqlx::query(update).bind(key).bind(response).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok((status, Json(transferred)))
    };
    recorded.await.map_err(failed)
}

#[idempotent(required)]
async fn leased(State(pool): State<PgPool>, Json(new): Json<NewTransfer>) -> Transferred {
    in_own_transaction(&pool, new).await.map_err(failed)
}

#[idempotent(required)]
async fn in_tx(mut tx: Tx<Postgres>, Json(new): Json<NewTransfer>) -> Transferred {
    transfer(&mut tx, new).await.map_err(failed)
}

const ROWS: [&str; 4] = ["bare transaction", "a record by hand", "`Tx`", "a store with leases"];

/// One row: a service, and a client with a connection that is kept.
struct Row {
    client: TcpStream,
    next: u64,
    nanos: Series,
    trips: f64,
}

/// A service for each row, over the database that is reached at `url`.
async fn services(url: &str) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for name in ROWS {
        let pool = PgPoolOptions::new().max_connections(4).connect(url).await?;
        let router = match name {
            "bare transaction" => Router::new().route("/", post(bare)),
            "a record by hand" => Router::new().route("/", post(by_hand)),
            "`Tx`" => {
                let store = PostgresStore::from_pool(pool.clone());
                let engine = Idempotency::builder(store).namespace("tx").build();
                Router::new().route("/", post(in_tx)).layer(IdempotencyLayer::new(engine))
            }
            _ => {
                let store = PostgresStore::connect(url).await?;
                let engine = Idempotency::builder(store).namespace("leased").build();
                Router::new().route("/", post(leased)).layer(IdempotencyLayer::new(engine))
            }
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        client.set_nodelay(true)?;
        tokio::spawn(async move { axum::serve(listener, router.with_state(pool)).await });
        rows.push(Row { client, next: 0, nanos: Series::default(), trips: 0.0 });
    }
    Ok(rows)
}

impl Row {
    /// Sends this many requests with new keys, one after the other, and returns the time that they took.
    async fn send(&mut self, requests: u64, run: &str) -> Result<Duration, Failure> {
        let started = Instant::now();
        for _ in 0..requests {
            self.next += 1;
            let body = format!("{{\"account\":{},\"amount\":5}}", self.next % 100);
            let request = format!(
                "POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nidempotency-key: {run}-{}\r\n\
                 content-length: {}\r\n\r\n{body}",
                self.next,
                body.len()
            );
            self.client.write_all(request.as_bytes()).await?;
            let mut reply = Vec::with_capacity(1024);
            // The body is JSON, and no header has a brace.
            while !reply.ends_with(b"}") {
                if self.client.read_buf(&mut reply).await? == 0 {
                    return Err("the service closed the connection".into());
                }
            }
            if !reply.starts_with(b"HTTP/1.1 201") || reply.windows(20).any(|part| part == b"idempotent-replayed:") {
                return Err(format!("a new key got {}", String::from_utf8_lossy(&reply)).into());
            }
        }
        Ok(started.elapsed())
    }
}

/// A row beside the bare transaction.
#[derive(Clone, Debug, Serialize)]
pub struct TransactionRow {
    /// Whose numbers these are.
    pub place: &'static str,
    /// What has the transaction.
    pub row: &'static str,
    /// Nanoseconds per request, one value per round.
    pub nanos: Series,
    /// Of those of the bare transaction, round by round.
    pub ratios: Series,
    /// Round trips per request.
    pub trips: f64,
}

/// Measures one place; nothing if it is no PostgreSQL server. A disk that commits wait for is measured again as a slower one.
///
/// # Errors
/// A response that is not what the row is about.
pub async fn measure(place: &Place, rounds: usize, batch: u64) -> Result<Vec<TransactionRow>, Failure> {
    let Place::Postgres(server, waits_for_disk) = place else { return Ok(Vec::new()) };
    server.sql(TABLES);
    let mut measured = side_by_side(server, place.name(), "as-it-is", rounds, batch).await?;
    if *waits_for_disk {
        for setting in SLOWER {
            server.sql(&format!("ALTER ROLE CURRENT_USER SET {setting}"));
        }
        measured.extend(side_by_side(server, "PostgresStore, commits 2 ms slower", "slower", rounds, batch).await?);
    }
    Ok(measured)
}

/// Measures all rows over one server, with keys that begin with `run`.
async fn side_by_side(
    server: &Server,
    name: &'static str,
    run: &str,
    rounds: usize,
    batch: u64,
) -> Result<Vec<TransactionRow>, Failure> {
    let trips = count(server, &format!("{run}-counted")).await?;
    let mut services = services(&server.url()).await?;
    let (turns, slice) = (services.len(), batch.div_ceil(SLICES));
    for round in 0..=rounds {
        let mut took = vec![Duration::ZERO; turns];
        for turn in 0..turns * usize::try_from(SLICES)? {
            let at = (round + turn) % turns;
            took[at] += services[at].send(slice, run).await?;
        }
        // The first round warms up.
        if round > 0 {
            for (service, took) in services.iter_mut().zip(took) {
                service.nanos.0.push(took.as_secs_f64() * 1e9 / (slice * SLICES) as f64);
            }
        }
    }
    for (service, trips) in services.iter_mut().zip(trips) {
        service.trips = trips;
    }
    let bare = services[0].nanos.clone();
    let beside = |(service, row): (Row, _)| TransactionRow {
        place: name,
        row,
        ratios: service.nanos.over(&bare),
        nanos: service.nanos,
        trips: service.trips,
    };
    Ok(services.into_iter().zip(ROWS).map(beside).collect())
}

/// Counts the round trips per request of each row.
async fn count(server: &Server, run: &str) -> Result<Vec<f64>, Failure> {
    let proxy = RoundTrips::to(server.port()).await?;
    let mut trips = Vec::new();
    for row in &mut services(&server.url_through(proxy.port())).await? {
        // Statements are prepared when they are first used.
        row.send(4, run).await?;
        let before = proxy.count();
        row.send(COUNTED, run).await?;
        trips.push((proxy.count() - before) as f64 / COUNTED as f64);
    }
    Ok(trips)
}

/// The table of `BENCHMARKS.md`.
pub fn table(rows: &[TransactionRow], spread: impl Fn(&Series) -> String) -> String {
    let mut table =
        String::from("| server | | a request takes | over the bare transaction | round trips |\n|---|---|---|---|---|");
    for TransactionRow { place, row, nanos, ratios, trips } in rows {
        let ratio = format!("**{:.2}** ({:.2}..{:.2})", ratios.median(), ratios.min(), ratios.max());
        let _ = write!(table, "\n| {place} | {row} | {} | {ratio} | {trips:.1} |", spread(nanos));
    }
    table
}

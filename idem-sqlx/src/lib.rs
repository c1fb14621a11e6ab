//! PostgreSQL and SQLite stores for `#[idempotent]`: for services that run as several processes, and for records that
//! survive a restart.
//!
//! ```toml
//! [dependencies]
//! idem-axum = "0.1"
//! idem-sqlx = { version = "0.1", features = ["postgres"] }
//! sqlx = "0.9" # for `from_pool`, `Tx` and `run_in`; not 0.8, whose types are others
//! ```
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use idem_runtime::Idempotency;
//! use idem_sqlx::PostgresStore;
//!
//! let store = PostgresStore::connect("postgres://app@localhost/shop").await?;
//! store.migrate().await?;
//! tokio::spawn(store.cleanup());
//! let idempotency = Idempotency::new(store);
//! // let app = app.layer(IdempotencyLayer::new(idempotency.clone()));
//! # Ok(())
//! # }
//! ```
//!
//! The features are `postgres`, `sqlite` and `axum` (for `Tx`). None is on by default. The feature `sqlite` compiles SQLite from C, and
//! links it into your binary. TLS to PostgreSQL needs one of the `tls-*` features of `sqlx`.
//!
//! # Guarantees
//!
//! In every row of the table, a handler starts at most once for a key while its claim or record lives. Only `abandoned = rerun` in the
//! policy allows more. The rows differ in what can be lost.
//!
//! | what happens | `PostgresStore` | `SqliteStore` |
//! |---|---|---|
//! | many processes claim at once | one gets the claim; each decision is one statement | the same, on one machine |
//! | the reply to a step is lost | it is sent again with the same owner token, and takes effect once; a claim whose reply was lost is released | there is no network; the claim of a `begin` that was dropped is released |
//! | a process that runs handlers is killed | the outcome is unknown when the lease expires: a retry is refused, or runs again if the policy says so | the same |
//! | the database's processes are killed (`kill -9`) | nothing acknowledged is lost (`synchronous_commit = on`, which the store sets whatever the default is) | there are none; if the process that writes is killed, nothing acknowledged is lost |
//! | the machine of the database loses its power | nothing acknowledged is lost, if `fsync` and `full_page_writes` are on and the disk keeps what it acknowledged | nothing acknowledged is lost (`synchronous = FULL`), if the disk keeps what it acknowledged |
//! | failover to a replica | asynchronous replication: the last claims and records may be lost, and then **a handler may run again**. With `synchronous_standby_names` set, nothing acknowledged is lost if the new primary was a synchronous standby | there are no replicas; replicating tools such as Litestream are asynchronous |
//! | the database is restored from a backup | what came after the backup is forgotten: **a retry may run again** | the same |
//! | the database cannot be reached, is read-only, or does not reply | no handler starts (503); one that runs goes on, its client gets the response, and its completion is tried again | the same |
//! | the disk is full | new keys are refused (503), existing ones are replayed; a response that does not fit is sent, and a retry is refused (409) | the same |
//! | a row is damaged | an error (503), and never a free key | the same |
//! | the clocks of the processes differ | does not matter: the database's clock decides | does not matter: they are on one machine |
//! | the clock of the database is set forward or back, or that of a new primary differs | leases and TTLs become shorter or longer by the same amount; forward by more than a lease, a running claim looks abandoned until it is renewed; forward by more than a TTL, **a retry may run again** | the same |
//!
//! Without `Tx` or `run_in` none of this is exactly-once: a process that dies between an effect and its record leaves an outcome
//! that is unknown. Its retries are refused (409) until the TTL has passed. With an argument `Tx` (feature `axum`) and a store made
//! with `from_pool` the record and what the handler writes are one commit, and the handler takes effect exactly once. Without HTTP,
//! [`run_in`](OnceExt::run_in) does the same in a transaction of the caller.
//!
//! # Operating it
//!
//! - Call `migrate()` once before the first request. It may run in all processes at once. Its statements are in the crate's folder
//!   `migrations`, to run them by hand.
//! - Spawn `cleanup()` in at least one process. Without it the store is correct, but the table grows.
//! - A failed step is [`StoreError::Unavailable`](idem_runtime::StoreError::Unavailable), whose source is a
//!   [`DatabaseError`]: it says what failed, what was not done, and what to do.
//! - A damaged row is [`StoreError::Unreadable`](idem_runtime::StoreError::Unreadable), with the same source.
//! - [`Idempotency::inspect`](idem_runtime::Idempotency::inspect) returns the state of a key with one `SELECT`. It does not see a `Tx`
//!   that runs in another process: its key looks free until it has ended. To count how often a record was replayed, call `count_replays(true)` on
//!   the builder.
//! - Keys never reach the database: rows are found by a SHA-256 over scope and key. Responses are stored as they are.
//! - Set the lease to several times the longest pause that the database or a process may have. The default is 30 seconds. The lease is
//!   renewed each time a third of it has passed.
#![cfg_attr(not(feature = "_database"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(feature = "_database")]
mod claim;
#[cfg(feature = "_database")]
mod cleanup;
#[cfg(feature = "_database")]
mod dialect;
#[cfg(feature = "_database")]
mod errors;
#[cfg(feature = "_database")]
mod execute;
#[cfg(feature = "_database")]
mod hosts;
#[cfg(feature = "_database")]
mod migrations;
#[cfg(feature = "_database")]
mod names;
#[cfg(feature = "_database")]
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "_database")]
mod raised;
#[cfg(feature = "_database")]
mod replay_count;
#[cfg(feature = "_database")]
mod rows;
#[cfg(feature = "_database")]
mod run_in;
#[cfg(feature = "_database")]
mod running;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "_database")]
mod store;
#[cfg(feature = "_database")]
mod table;
#[cfg(feature = "_database")]
mod transaction;
#[cfg(all(feature = "axum", feature = "_database"))]
mod tx;
#[cfg(feature = "_database")]
pub use claim::SqlClaim;
#[cfg(feature = "_database")]
pub use dialect::Dialect;
#[cfg(feature = "_database")]
pub use errors::{ConnectError, DatabaseError, MigrateError, Problem, Step};
#[cfg(feature = "_database")]
pub use names::InvalidName;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresClaim, PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "_database")]
pub use run_in::OnceExt;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteClaim, SqliteStore, SqliteStoreBuilder};
#[cfg(feature = "_database")]
pub use store::SqlStore;
#[cfg(all(feature = "axum", feature = "_database"))]
pub use tx::{Tx, TxRejection};

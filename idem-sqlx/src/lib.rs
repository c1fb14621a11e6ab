//! placeholder
#[cfg(feature = "_database")]
mod claim;
#[cfg(feature = "_database")]
mod cleanup;
#[cfg(feature = "_database")]
mod core;
#[cfg(feature = "_database")]
mod database;
#[cfg(feature = "_database")]
mod errors;
#[cfg(feature = "_database")]
mod migrations;
#[cfg(feature = "_database")]
mod names;
#[cfg(feature = "_database")]
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "_database")]
mod waiting;

#[cfg(feature = "_database")]
pub use errors::{ConnectError, DatabaseError, MigrateError, Problem, Step};
#[cfg(feature = "_database")]
pub use names::InvalidName;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresClaim, PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteClaim, SqliteStore, SqliteStoreBuilder};

//! The store in PostgreSQL.

use std::fmt;
use std::sync::Arc;

use sqlx::Postgres;
use sqlx::postgres::PgConnectOptions;

use crate::claim::SqlClaim;
use crate::errors::ConnectError;
use crate::hosts::{Hosts, OptionsFrom};
use crate::store::SqlStore;

mod builder;
mod dialect;
mod listen;
mod migrations;
mod statements;
mod url;

pub use builder::PostgresStoreBuilder;

/// Claims and records in a table of a PostgreSQL database (12 or later), shared by any number of processes.
///
/// [`SqlStore`] has the methods, and says how it works.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use idem_runtime::Idempotency;
/// use idem_sqlx::PostgresStore;
///
/// let store = PostgresStore::connect("postgres://app@localhost/shop").await?;
/// store.migrate().await?;
/// tokio::spawn(store.cleanup());
/// let idempotency = Idempotency::new(store);
/// # Ok(())
/// # }
/// ```
///
/// # How it works
///
/// Each step is one statement and one round trip: `begin`, whatever the state of the key is, `renew`, `complete` and
/// `release`. All times are the database's (`clock_timestamp()`), and the clocks of the processes do not matter.
///
/// Waiters poll at least twice a second, and earlier if a `NOTIFY` wakes them. The one connection that listens is opened when
/// a request waits, and closed when none has waited for a while.
///
/// A key costs two round trips and about 590 bytes of WAL, beside its response; a renewal costs about 130, and changes no index. A
/// statement that times out, or whose caller leaves, is cancelled before its connection is replaced. With `track_activities = off` it is
/// not cancelled: the connection is replaced when the statement has ended. While the server is silent, read-only or out of connections, or
/// refuses the login, the store makes some ten new ones per second, however many requests come.
///
/// # Requirements
///
/// The store's own connections set `synchronous_commit = on` and READ COMMITTED at their start, whatever the database's defaults are, and a
/// connection on which that does not hold is refused. Behind PgBouncer, use session pooling, or transaction pooling with version 1.21 or
/// later and `max_prepared_statements` above 0. Put `options` and `extra_float_digits` among `ignore_startup_parameters`, and give the two
/// settings to the role with `ALTER ROLE .. SET`. With transaction pooling, waiters poll, since they are not notified. PgBouncer, and not
/// the store, ends a statement that timed out. TLS needs one of the `tls-*` features of `sqlx`.
///
/// # Several hosts
///
/// A URL may name several hosts, as those of libpq do: `postgres://app@a.example:5432,b.example:5432/shop`. A new connection goes to the
/// first that takes writes, beginning with the host that the last one went to. The store passes over a host that
///
/// - has a name that does not resolve, refuses the connection, or does not reply within its share of the `timeout`,
/// - starts up, shuts down, or has no connections left, or
/// - is a standby, or read-only.
///
/// A wrong password or a missing database is reported, and no further host is tried. `target_session_attrs` may be `read-write`, `primary`
/// or `any`. It has no effect, since the store always needs a host that takes writes.
///
/// After a failover the store finds the new primary without a restart. The old primary must not take writes when it comes back: two
/// primaries are two stores. With one host the store connects to the same address again, so let that follow the primary.
///
/// # Rights
///
/// `migrate()` needs the right to create a table and functions in the schema, or to create the schema. If another role has called it, the
/// role of the service needs these and no others:
///
/// ```sql
/// GRANT CONNECT ON DATABASE shop TO app;
/// GRANT USAGE ON SCHEMA public TO app;
/// GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency TO app;
/// GRANT SELECT ON idempotency_migrations TO app; -- for `migrate()`, which then finds nothing to do
/// ```
///
/// `Tx` and `run_in` call two functions with the rights of the caller. If your database does not let everyone execute new functions,
/// they need one more:
///
/// ```sql
/// GRANT EXECUTE ON FUNCTION idempotency_claim, idempotency_complete TO app;
/// ```
pub type PostgresStore = SqlStore<Postgres>;

/// A claim in a [`PostgresStore`].
pub type PostgresClaim = SqlClaim<Postgres>;

/// Where the table is.
pub struct Location {
    schema: String,
    table: String,
    /// For connections outside the pool: one that migrates, one that listens.
    hosts: Arc<Hosts<Postgres>>,
    channel: String,
}

impl Location {
    /// Returns the table, or what belongs to it, as it is named in SQL.
    fn quoted(&self, suffix: &str) -> String {
        format!("\"{}\".\"{}{suffix}\"", self.schema, self.table)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.quoted(""))
    }
}

impl SqlStore<Postgres> {
    /// Opens a store in the database at `url`, such as `postgres://user:password@host/database`, with the default settings. The URL may
    /// name [several hosts](crate::PostgresStore#several-hosts).
    ///
    /// # Errors
    /// The URL is not understood, or no connection could be made. If the URL names several hosts, the error says why for each of them.
    pub async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::builder().connect(url).await
    }

    /// Makes a store in the database that `options` lead to, with the default settings. The options of `sqlx` say what a URL cannot: a
    /// socket, certificates, a password from elsewhere. No connection is made yet.
    pub fn from_options(options: PgConnectOptions) -> Self {
        Self::builder().build(OptionsFrom::Hosts(vec![options]))
    }

    /// Makes a store in the database of `pool`, which is the pool of the handlers, with the default settings. With such a store a
    /// handler can have an argument `Tx<Postgres>` (feature `axum`), whose transaction is in this pool.
    ///
    /// The pool is used for these transactions alone: at most three quarters of its connections at once, and at least one, so that
    /// handlers may use the pool as well. For everything else the store opens connections with the options that the pool has then, up to
    /// [`max_connections`](PostgresStoreBuilder::max_connections). No connection is made yet.
    pub fn from_pool(pool: sqlx::PgPool) -> Self {
        Self::builder().build(OptionsFrom::Pool(pool))
    }

    /// Returns a builder, to change the default settings.
    pub fn builder() -> PostgresStoreBuilder {
        PostgresStoreBuilder::new()
    }
}

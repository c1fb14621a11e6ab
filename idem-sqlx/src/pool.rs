//! A few connections, lent for one statement at a time.
//!
//! sqlx's own pool pings the server around every use, which would double the round trips, and waits for it without a limit.
//! Here a connection comes back only if its statement ended well. Otherwise it is closed, also if a cancelled caller left a
//! statement half-way.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::errors::Problem;

pub(crate) struct Pool<C: Connection> {
    options: C::Options,
    max_connections: usize,
    permits: Semaphore,
    idle: Mutex<Vec<C>>,
}

impl<C: Connection> Pool<C> {
    pub(crate) fn new(options: C::Options, max_connections: usize) -> Self {
        Self { options, max_connections, permits: Semaphore::new(max_connections), idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a connection: the one used last, or a new one.
    pub(crate) async fn acquire(&self, until: Instant, waited: Duration) -> Result<PooledConnection<'_, C>, Problem> {
        let none = || Problem::NoConnection { max_connections: self.max_connections, waited };
        let permit = timeout_at(until, self.permits.acquire()).await.map_err(|_| none())?.map_err(|_| none())?;
        // The time of another caller may have run out at the same moment as that of this one.
        if Instant::now() >= until {
            return Err(none());
        }
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect(until, waited).await?,
        };
        Ok(PooledConnection { pool: self, connection, _permit: permit })
    }

    async fn connect(&self, until: Instant, waited: Duration) -> Result<C, Problem> {
        match timeout_at(until, self.options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            // Starting up, shutting down, out of connections, or not there.
            Ok(Err(error)) if is_transient(&error) => Err(Problem::Unreachable { waited, source: Some(error) }),
            Ok(Err(error)) => Err(Problem::Refused(error)),
            Err(_) => Err(Problem::Unreachable { waited, source: None }),
        }
    }

    /// Closes the idle connections: if one broke, the others are likely to be broken, too.
    pub(crate) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

/// A connection of a pool. It is closed if it is dropped without [`put_back`](Self::put_back).
pub(crate) struct PooledConnection<'a, C: Connection> {
    pool: &'a Pool<C>,
    pub(crate) connection: C,
    _permit: SemaphorePermit<'a>,
}

impl<C: Connection> PooledConnection<'_, C> {
    /// Returns a connection that is in order to the pool.
    pub(crate) fn put_back(self) {
        self.pool.idle().push(self.connection);
    }
}

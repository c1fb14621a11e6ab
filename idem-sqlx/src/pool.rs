//! A few connections, lent one statement at a time.
//!
//! sqlx's own pool asks the server for a sign of life around every use, which would double the round trips, and waits for
//! it without a limit. Here a connection comes back only when its statement ended well; otherwise it is closed, and so is
//! whatever a cancelled caller has left behind half-way.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::errors::Problem;

pub(crate) struct Pool<C: Connection> {
    options: C::Options,
    max_connections: usize,
    places: Semaphore,
    idle: Mutex<Vec<C>>,
}

impl<C: Connection> Pool<C> {
    pub(crate) fn new(options: C::Options, max_connections: usize) -> Self {
        Self { options, max_connections, places: Semaphore::new(max_connections), idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a connection: the one used last, or a new one.
    pub(crate) async fn lend(&self, until: Instant, waited: Duration) -> Result<Lent<'_, C>, Problem> {
        let none = || Problem::NoConnection { max_connections: self.max_connections, waited };
        let place = timeout_at(until, self.places.acquire()).await.map_err(|_| none())?.map_err(|_| none())?;
        // Somebody else's time was up in the same moment as this one's.
        if Instant::now() >= until {
            return Err(none());
        }
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect(until, waited).await?,
        };
        Ok(Lent { pool: self, connection, _place: place })
    }

    async fn connect(&self, until: Instant, waited: Duration) -> Result<C, Problem> {
        match timeout_at(until, self.options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            // Starting up, shutting down, out of connections, or not there: all of which may pass.
            Ok(Err(error)) if may_pass(&error) => Err(Problem::Unreachable { waited, source: Some(error) }),
            Ok(Err(error)) => Err(Problem::Refused(error)),
            Err(_) => Err(Problem::Unreachable { waited, source: None }),
        }
    }

    /// Closes the connections that nobody uses: where one broke, the others are likely to be no better.
    pub(crate) fn distrust(&self) {
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }
}

fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.is_transient_in_connect_phase(),
        _ => false,
    }
}

/// A connection on loan. Dropped without [`give_back`](Self::give_back), it is closed.
pub(crate) struct Lent<'a, C: Connection> {
    pool: &'a Pool<C>,
    pub(crate) connection: C,
    _place: SemaphorePermit<'a>,
}

impl<C: Connection> Lent<'_, C> {
    /// Says that the connection is in order.
    pub(crate) fn give_back(self) {
        self.pool.idle().push(self.connection);
    }
}

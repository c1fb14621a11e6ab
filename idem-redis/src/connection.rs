//! The connection: made when it is needed, shared by all steps, and replaced when it fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value};
use tokio::time::{Instant, timeout_at};

use crate::errors::Error;

/// How many steps may wait to be written. Small steps of many requests share one connection.
const MAX_QUEUED: usize = 1024;

/// How often a step is sent at most.
const MAX_ATTEMPTS: u32 = 3;

/// One connection to Redis, and how to make the next. `redis::aio::ConnectionManager` keeps a connection that does not
/// reply, and one to a primary that became a replica. Neither would ever recover by itself.
pub(crate) struct Connection {
    client: Client,
    config: AsyncConnectionConfig,
    timeout: Duration,
    current: Mutex<Option<Numbered>>,
    /// At most one connection is being made. A step that waits for it waits no longer than its deadline.
    connecting: tokio::sync::Mutex<()>,
    made: AtomicU64,
}

#[derive(Clone)]
struct Numbered {
    number: u64,
    connection: MultiplexedConnection,
}

/// What is sent in one round trip: a command, or several.
pub(crate) trait Request: Sync {
    /// What the server replies: a value, or one for each command. Any may be an error of the server.
    type Value: Send;

    fn send(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = Result<Self::Value, RedisError>> + Send;

    /// Whether the server was demoted to a replica, or has lost its primary: a new connection may lead to the right one.
    fn is_refused_by_a_replica(value: &Self::Value) -> bool;
}

impl Request for Cmd {
    type Value = Value;

    async fn send(&self, connection: &mut MultiplexedConnection) -> Result<Value, RedisError> {
        connection.send_packed_command(self).await
    }

    fn is_refused_by_a_replica(value: &Value) -> bool {
        matches!(value, Value::ServerError(error) if matches!(error.code(), "READONLY" | "MASTERDOWN" | "UNBLOCKED"))
    }
}

impl Request for Pipeline {
    type Value = Vec<Value>;

    async fn send(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Value>, RedisError> {
        connection.send_packed_commands(self, 0, self.len()).await
    }

    fn is_refused_by_a_replica(values: &Vec<Value>) -> bool {
        values.iter().any(Cmd::is_refused_by_a_replica)
    }
}

/// What the server replied.
pub(crate) struct Reply<V> {
    pub(crate) value: V,
    /// Whether the request was sent twice, so that the first one may have taken effect as well.
    pub(crate) repeated: bool,
    /// The number of the connection that the reply came on.
    pub(crate) connection: u64,
}

impl Reply<Value> {
    /// Turns an error of the server into an error.
    pub(crate) fn accepted(self) -> Result<Self, Error> {
        match self.value {
            Value::ServerError(error) => Err(Error::Refused { error, repeated: self.repeated }),
            _ => Ok(self),
        }
    }
}

impl Connection {
    pub(crate) fn new(client: Client, timeout: Duration) -> Self {
        // Every wait has its own deadline here, connecting included.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(MAX_QUEUED);
        Self {
            client,
            config,
            timeout,
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
            made: AtomicU64::new(0),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// When a step that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends a request in one round trip. It may be sent twice, so its effect must be the same twice as once.
    pub(crate) async fn send<R: Request>(&self, request: &R, deadline: Instant) -> Result<Reply<R::Value>, Error> {
        let mut used = None;
        if let Ok(result) = timeout_at(deadline, self.attempt(request, &mut used)).await {
            return result;
        }
        match used {
            None => Err(Error::NotConnected(self.timeout)),
            // The connection may be dead although nothing has closed it. A new one costs little.
            Some(number) => {
                self.discard(number);
                Err(Error::NoReply(self.timeout))
            }
        }
    }

    /// Sends one more command on the connection with this number, and on no other.
    pub(crate) async fn send_on(&self, number: u64, command: &Cmd, deadline: Instant) -> Result<Value, Error> {
        let current = self.current().clone().filter(|current| current.number == number);
        let Some(Numbered { mut connection, .. }) = current else { return Err(Error::Unconfirmed) };
        match timeout_at(deadline, command.send(&mut connection)).await {
            Ok(Ok(Value::ServerError(error))) => Err(Error::Refused { error, repeated: false }),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.discard(number);
                Err(Error::Broken(error))
            }
            Err(_) => {
                self.discard(number);
                Err(Error::NoReply(self.timeout))
            }
        }
    }

    /// A connection that was idle may have ended unnoticed, so a failure on it is followed by another attempt.
    async fn attempt<R: Request>(&self, request: &R, used: &mut Option<u64>) -> Result<Reply<R::Value>, Error> {
        let mut broken = None;
        let mut attempts = 0;
        loop {
            let (Numbered { number, mut connection }, is_new) = match self.connect().await {
                Ok(connected) => connected,
                Err(error) => return Err(broken.map_or(Error::Unreachable(error), Error::Broken)),
            };
            *used = Some(number);
            attempts += 1;
            let is_last = is_new || attempts == MAX_ATTEMPTS;
            let sent = request.send(&mut connection).await;
            let is_demoted = matches!(&sent, Ok(value) if R::is_refused_by_a_replica(value));
            if is_demoted || sent.is_err() {
                self.discard(number);
            }
            match sent {
                Ok(value) if is_last || !is_demoted => {
                    return Ok(Reply { value, repeated: broken.is_some(), connection: number });
                }
                Ok(_) => broken = Some(std::io::Error::other("the server is no longer the primary").into()),
                Err(error) if is_last => return Err(Error::Broken(error)),
                Err(error) => broken = Some(error),
            }
        }
    }

    /// Returns the connection, and whether it is new.
    async fn connect(&self) -> Result<(Numbered, bool), RedisError> {
        if let Some(current) = self.current().clone() {
            return Ok((current, false));
        }
        let _connecting = self.connecting.lock().await;
        if let Some(current) = self.current().clone() {
            return Ok((current, false));
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let new = Numbered { number: self.made.fetch_add(1, Ordering::Relaxed), connection };
        *self.current() = Some(new.clone());
        Ok((new, true))
    }

    /// Stops using the connection with this number. Steps that are under way on it end as they can.
    fn discard(&self, number: u64) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| current.number == number) {
            *current = None;
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Numbered>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

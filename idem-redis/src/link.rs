//! The connection: made when it is needed, shared by all steps, and replaced when it is of no use any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value};
use tokio::time::{Instant, timeout_at};

use crate::errors::Trouble;

/// How many steps may wait to be written. Small steps of many requests share one connection.
const QUEUE: usize = 1024;

/// How often a step is sent at most.
const TRIES: u32 = 3;

/// One connection to Redis, and how to make the next. `redis::aio::ConnectionManager` keeps a connection that does not
/// answer, and one to a primary that became a replica; neither would ever get better by itself.
pub(crate) struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    timeout: Duration,
    current: Mutex<Option<Live>>,
    /// One connection at most is being made. Who waits for it waits no longer than a step may take.
    making: tokio::sync::Mutex<()>,
    made: AtomicU64,
}

/// What is sent in one round trip: a command, or several.
pub(crate) trait Words: Sync {
    /// What the server says to it: a value, or one for each command. Any may be an error of the server.
    type Answer: Send;

    fn ask(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> impl Future<Output = Result<Self::Answer, RedisError>> + Send;

    /// Whether the server was demoted to a replica, or has lost its primary: a new connection may lead to the right one.
    fn is_refused_by_a_replica(answer: &Self::Answer) -> bool;
}

impl Words for Cmd {
    type Answer = Value;

    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Value, RedisError> {
        connection.send_packed_command(self).await
    }

    fn is_refused_by_a_replica(answer: &Value) -> bool {
        matches!(answer, Value::ServerError(error) if matches!(error.code(), "READONLY" | "MASTERDOWN" | "UNBLOCKED"))
    }
}

impl Words for Pipeline {
    type Answer = Vec<Value>;

    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Value>, RedisError> {
        connection.send_packed_commands(self, 0, self.len()).await
    }

    fn is_refused_by_a_replica(answer: &Vec<Value>) -> bool {
        answer.iter().any(Cmd::is_refused_by_a_replica)
    }
}

/// What the server said.
pub(crate) struct Heard<A> {
    pub(crate) answer: A,
    /// Whether it was asked twice, so that the first time may have taken effect as well.
    pub(crate) repeated: bool,
    /// The connection that the answer came on.
    pub(crate) number: u64,
}

impl Heard<Value> {
    /// An answer that is an error of the server, as an error.
    pub(crate) fn accepted(self) -> Result<Self, Trouble> {
        match self.answer {
            Value::ServerError(error) => Err(Trouble::Refused { error, repeated: self.repeated }),
            _ => Ok(self),
        }
    }
}

#[derive(Clone)]
struct Live {
    number: u64,
    connection: MultiplexedConnection,
}

impl Link {
    pub(crate) fn new(client: Client, timeout: Duration) -> Self {
        // Every wait has its own end here, connecting included.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        Self {
            client,
            config,
            timeout,
            current: Mutex::new(None),
            making: tokio::sync::Mutex::new(()),
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

    /// Sends commands in one round trip. They may be sent twice, so they must do the same twice as once.
    pub(crate) async fn send<W: Words>(&self, words: &W, deadline: Instant) -> Result<Heard<W::Answer>, Trouble> {
        let mut used = None;
        if let Ok(result) = timeout_at(deadline, self.attempt(words, &mut used)).await {
            return result;
        }
        match used {
            None => Err(Trouble::Unconnected(self.timeout)),
            // It may be a dead connection that nobody has ended. A new one costs little and may find a way.
            Some(number) => {
                self.lost(number);
                Err(Trouble::Silent(self.timeout))
            }
        }
    }

    /// Sends one more command on the connection with this number, and on no other.
    pub(crate) async fn follow(&self, number: u64, command: &Cmd, deadline: Instant) -> Result<Value, Trouble> {
        let live = self.current().clone().filter(|live| live.number == number);
        let Some(mut live) = live else { return Err(Trouble::Unheard) };
        match timeout_at(deadline, command.ask(&mut live.connection)).await {
            Ok(Ok(Value::ServerError(error))) => Err(Trouble::Refused { error, repeated: false }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                self.lost(live.number);
                Err(Trouble::Broken(error))
            }
            Err(_) => {
                self.lost(live.number);
                Err(Trouble::Silent(self.timeout))
            }
        }
    }

    /// A connection that stood for a while may have ended unnoticed, so a failure on it is followed by another try.
    async fn attempt<W: Words>(&self, words: &W, used: &mut Option<u64>) -> Result<Heard<W::Answer>, Trouble> {
        let mut broken = None;
        let mut tries = 0;
        loop {
            let (mut live, fresh) = match self.live().await {
                Ok(live) => live,
                Err(error) => return Err(broken.map_or(Trouble::Unreachable(error), Trouble::Broken)),
            };
            *used = Some(live.number);
            tries += 1;
            let last_try = fresh || tries == TRIES;
            let sent = words.ask(&mut live.connection).await;
            let demoted = matches!(&sent, Ok(answer) if W::is_refused_by_a_replica(answer));
            if demoted || sent.is_err() {
                self.lost(live.number);
            }
            match sent {
                Ok(answer) if last_try || !demoted => {
                    return Ok(Heard { answer, repeated: broken.is_some(), number: live.number });
                }
                Ok(_) => broken = Some(std::io::Error::other("the server is not the primary any more").into()),
                Err(error) if last_try => return Err(Trouble::Broken(error)),
                Err(error) => broken = Some(error),
            }
        }
    }

    /// The connection, and whether it is new.
    async fn live(&self) -> Result<(Live, bool), RedisError> {
        if let Some(live) = self.current().clone() {
            return Ok((live, false));
        }
        let _making = self.making.lock().await;
        if let Some(live) = self.current().clone() {
            return Ok((live, false));
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let live = Live { number: self.made.fetch_add(1, Ordering::Relaxed), connection };
        *self.current() = Some(live.clone());
        Ok((live, true))
    }

    /// The connection with this number is not used any more. Steps that are under way on it end as they can.
    fn lost(&self, number: u64) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|live| live.number == number) {
            *current = None;
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Live>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The connection: made when it is needed, shared by all steps, and replaced when it is of no use any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::errors::Trouble;

/// How many steps may wait to be written. Small steps of many requests share one connection.
const QUEUE: usize = 1024;

/// One connection to Redis, and how to make the next. `redis::aio::ConnectionManager` keeps a connection that does not
/// answer, and one to a primary that became a replica; neither would ever get better by itself.
pub(crate) struct Link {
    client: Client,
    config: AsyncConnectionConfig,
    timeout: Duration,
    current: Mutex<Option<Live>>,
    made: AtomicU64,
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
        Self { client, config, timeout, current: Mutex::new(None), made: AtomicU64::new(0) }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// When a step that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends commands in one round trip and gives back one reply for each; a reply may be an error of the server.
    ///
    /// What is sent may be sent twice, so it must be the same twice as once.
    pub(crate) async fn send(&self, commands: &Pipeline, deadline: Instant) -> Result<Vec<Value>, Trouble> {
        let mut used = None;
        if let Ok(result) = timeout_at(deadline, self.attempt(commands, &mut used)).await {
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

    /// A connection that stood for a while may have ended unnoticed, so a failure on it is followed by a second try.
    async fn attempt(&self, commands: &Pipeline, used: &mut Option<u64>) -> Result<Vec<Value>, Trouble> {
        let mut broken = None;
        loop {
            let (mut live, fresh) = match self.live().await {
                Ok(live) => live,
                Err(error) => return Err(broken.map_or(Trouble::Unreachable(error), Trouble::Broken)),
            };
            *used = Some(live.number);
            let last_try = fresh || broken.is_some();
            match live.connection.req_packed_commands(commands, 0, commands.len()).await {
                Ok(replies) if replies.iter().any(is_demoted) => {
                    self.lost(live.number);
                    if last_try {
                        return Ok(replies);
                    }
                    broken = Some(RedisError::from(std::io::Error::other("the server is not the primary any more")));
                }
                Ok(replies) => return Ok(replies),
                Err(error) => {
                    self.lost(live.number);
                    if last_try {
                        return Err(Trouble::Broken(error));
                    }
                    broken = Some(error);
                }
            }
        }
    }

    /// The connection, and whether it is new. One at most is being made; who waits for it waits no longer than a step may.
    async fn live(&self) -> Result<(Live, bool), RedisError> {
        let mut current = self.current.lock().await;
        if let Some(live) = &*current {
            return Ok((live.clone(), false));
        }
        let connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let live = Live { number: self.made.fetch_add(1, Ordering::Relaxed), connection };
        *current = Some(live.clone());
        Ok((live, true))
    }

    /// The connection with this number is not used any more. Steps that are under way on it end as they can.
    fn lost(&self, number: u64) {
        // Where the lock is taken, somebody is making a new one, because this one is gone already.
        if let Ok(mut current) = self.current.try_lock()
            && current.as_ref().is_some_and(|live| live.number == number)
        {
            *current = None;
        }
    }
}

/// Whether the server was demoted to a replica, or has lost its primary: a new connection may lead to the right one.
fn is_demoted(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if matches!(error.code(), "READONLY" | "MASTERDOWN" | "UNBLOCKED"))
}

//! The connection: made and checked when it is needed, shared by all steps, and replaced when it fails.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, select_ok};
use idem_runtime::panics;
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio::time::{Instant, timeout, timeout_at};

use crate::checks::Checks;
use crate::errors::{ConnectError, Error};
use crate::link::{Link, LinkSource};

/// How often a step is sent at most.
const MAX_ATTEMPTS: u32 = 3;

/// One connection to Redis, and how to make the next. `redis::aio::ConnectionManager` keeps a connection that does not
/// reply, and one to a primary that became a replica. Neither would ever recover by itself.
pub(crate) struct Connection {
    source: LinkSource,
    checks: Arc<Checks>,
    timeout: Duration,
    /// How long a step waits for a reply before it also tries a new connection.
    first_wait: Duration,
    current: Mutex<Option<Numbered>>,
    made: AtomicU64,
}

#[derive(Clone)]
struct Numbered {
    number: u64,
    /// All steps that wait for it make it together, so it ends with none of them. It is ready at once when it is made.
    link: Shared<BoxFuture<'static, Result<Link, ConnectError>>>,
    /// When the steps that wait for it make another one.
    until: Instant,
}

/// What is sent in one round trip: a command, or several.
pub(crate) trait Request: Sync {
    /// What the server replies: a value, or one for each command. Any may be an error of the server.
    type Value: Send;

    fn send(&self, link: &mut Link) -> impl Future<Output = Result<Self::Value, RedisError>> + Send;

    /// Whether the server was demoted to a replica, or has lost its primary: a new connection may lead to the right one.
    fn is_refused_by_a_replica(value: &Self::Value) -> bool;
}

impl Request for Cmd {
    type Value = Value;

    async fn send(&self, link: &mut Link) -> Result<Value, RedisError> {
        link.command(self).await
    }

    fn is_refused_by_a_replica(value: &Value) -> bool {
        matches!(value, Value::ServerError(error) if matches!(error.code(), "READONLY" | "MASTERDOWN" | "UNBLOCKED"))
    }
}

impl Request for Pipeline {
    type Value = Vec<Value>;

    async fn send(&self, link: &mut Link) -> Result<Vec<Value>, RedisError> {
        link.pipeline(self).await
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

/// How a try on one connection ended.
enum Tried<V> {
    Replied(V),
    /// It has to be sent again, on another connection.
    Failed(RedisError),
}

impl Connection {
    /// A connection whose steps take at most `timeout`, of which the server may be silent for `wait` on purpose.
    pub(crate) fn new(source: LinkSource, checks: Checks, timeout: Duration, wait: Duration) -> Self {
        Self {
            source,
            checks: Arc::new(checks),
            timeout: timeout.saturating_add(wait),
            first_wait: wait.saturating_add(timeout / 2),
            current: Mutex::new(None),
            made: AtomicU64::new(0),
        }
    }

    pub(crate) fn source(&self) -> &LinkSource {
        &self.source
    }

    /// How long a step may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When a step that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Makes the connection, unless there is one.
    pub(crate) async fn open(&self) -> Result<(), ConnectError> {
        match timeout(self.timeout, self.connect()).await {
            Ok(connected) => connected.map(drop),
            Err(_) => Err(ConnectError::NoReply(self.timeout)),
        }
    }

    /// The next step makes a new connection. Steps that are under way on this one end as they can.
    pub(crate) fn give_up(&self) {
        *self.current() = None;
    }

    /// Sends a request in one round trip. It may be sent twice, so its effect must be the same twice as once.
    pub(crate) async fn send<R: Request>(&self, request: &R, deadline: Instant) -> Result<Reply<R::Value>, Error> {
        let used = Mutex::new(None);
        if let Ok(result) = timeout_at(deadline, self.attempts(request, &used)).await {
            return result;
        }
        match used.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Err(Error::NotConnected(self.timeout)),
            // The connection may be dead although nothing has closed it. A new one costs little.
            Some(number) => {
                self.discard(number);
                Err(Error::NoReply(self.timeout))
            }
        }
    }

    /// Sends a request until there is a reply. A connection that was idle may have ended unnoticed, so a failure on it is followed
    /// by another try. `used` is the connection that was used last.
    fn attempts<'a, R: Request>(
        &'a self,
        request: &'a R,
        used: &'a Mutex<Option<u64>>,
    ) -> BoxFuture<'a, Result<Reply<R::Value>, Error>> {
        async move {
            let mut broken = None;
            let mut attempts = 0;
            loop {
                let (number, mut link, is_new) = match self.connect().await {
                    Ok(connected) => connected,
                    Err(ConnectError::Unreachable(error)) => {
                        return Err(broken.map_or(Error::Unreachable(error), Error::Broken));
                    }
                    Err(error) => return Err(Error::Unfit { error, repeated: broken.is_some() }),
                };
                *used.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
                attempts += 1;
                let is_last = is_new || attempts == MAX_ATTEMPTS;
                let mut sent = self.attempt(request, number, &mut link, is_last).boxed();
                let tried = match timeout(self.first_wait, &mut sent).await {
                    Ok(tried) => tried,
                    Err(_) if is_last => sent.await,
                    // A firewall may have forgotten the connection, and then there will be no reply. If the server is only slow, the
                    // reply to the first try counts as well.
                    Err(_) => {
                        self.discard(number);
                        let first = async {
                            match sent.await {
                                Tried::Replied(value) => Ok(Reply { value, repeated: true }),
                                Tried::Failed(error) => Err(Error::Broken(error)),
                            }
                        };
                        let second = self.attempts(request, used).map(|second| match second {
                            Ok(reply) => Ok(Reply { repeated: true, ..reply }),
                            Err(error) => Err(error.after_another_try()),
                        });
                        return select_ok([first.boxed(), second.boxed()]).await.map(|(reply, _)| reply);
                    }
                };
                match tried {
                    Tried::Replied(value) => return Ok(Reply { value, repeated: broken.is_some() }),
                    Tried::Failed(error) if is_last => return Err(Error::Broken(error)),
                    Tried::Failed(error) => broken = Some(error),
                }
            }
        }
        .boxed()
    }

    /// Sends a request on one connection, which is discarded if it fails or leads to a replica.
    async fn attempt<R: Request>(&self, request: &R, number: u64, link: &mut Link, is_last: bool) -> Tried<R::Value> {
        match request.send(link).await {
            Ok(value) if !R::is_refused_by_a_replica(&value) => Tried::Replied(value),
            Ok(value) => {
                self.discard(number);
                if is_last {
                    return Tried::Replied(value);
                }
                Tried::Failed(io::Error::other("the server is no longer the primary").into())
            }
            Err(error) => {
                self.discard(number);
                Tried::Failed(error)
            }
        }
    }

    /// Returns the connection with its number, and whether this step has begun to make it.
    async fn connect(&self) -> Result<(u64, Link, bool), ConnectError> {
        loop {
            let (Numbered { number, link, until }, is_new) = self.current_or_new();
            // The deadline of the step that has begun it comes first. Otherwise the step would begin another one in its last moment.
            let made = if is_new { Ok(link.await) } else { timeout_at(until, link).await };
            match made {
                Ok(Ok(link)) => return Ok((number, link, is_new)),
                Ok(Err(error)) if is_new => {
                    self.discard(number);
                    return Err(error);
                }
                _ => self.discard(number),
            }
        }
    }

    fn current_or_new(&self) -> (Numbered, bool) {
        let mut current = self.current();
        if let Some(current) = &*current {
            return (current.clone(), false);
        }
        let (source, checks) = (self.source.clone(), Arc::clone(&self.checks));
        let link = async move {
            let mut link = source.connect().await.map_err(ConnectError::Unreachable)?;
            checks.pass(&mut link).await?;
            Ok(link)
        };
        // As in a runtime without sockets. A shared future that has panicked would panic in each later step.
        let link = AssertUnwindSafe(link).catch_unwind().map(|made| {
            made.unwrap_or_else(|panic| {
                panics::discard(panic);
                Err(ConnectError::Unreachable(io::Error::other("the attempt to connect panicked").into()))
            })
        });
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let new = Numbered { number, link: link.boxed().shared(), until: self.deadline() };
        *current = Some(new.clone());
        (new, true)
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

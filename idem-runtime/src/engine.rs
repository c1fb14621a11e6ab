//! The engine: from a request with a key to an answer, top to bottom.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use crate::clock::Clock;
use crate::counted;
use crate::ending::{self, STEP};
use crate::erased::{BoxFuture, Erased, ErasedStore};
use crate::execution::{Ended, Execution, at_once, unprotected};
use crate::expire::Expirer;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::lease::Lease;
use crate::memory::MemoryStore;
use crate::observation::carried;
use crate::origin::{Endpoint, Origin, TraceParent};
use crate::record::Record;
use crate::rules::Rules;
use crate::store::{Duties, Store, StoreError};

mod begin;
mod builder;
mod drain;
mod inspect;
mod places;
mod settle;
mod shadow;
mod waiting;

use begin::Verdict;
pub use builder::IdempotencyBuilder;
pub use drain::Undrained;
pub use inspect::{Inspection, State};
pub(crate) use places::Place;
use places::Places;
pub use settle::{SettleError, Settled};
pub use shadow::{Shadow, Would};
use waiting::Waiting;

/// The engine, a cheap clone over a store.
///
/// # Executions run in tasks of their own
///
/// A web server drops the future of a request when the client hangs up, at whatever `await` it stands. So the engine
/// runs each body in a tracked task, and the request only waits for it: a body that started runs to its end, and its
/// answer is recorded. The task carries the request's `tracing` span and subscriber. Task-locals do not reach the body;
/// pass what it needs as an argument.
///
/// # Shutting down
///
/// A server that has shut down gracefully has answered its clients, but bodies whose client hung up may still run. Call
/// [`drain`](Self::drain) after it.
///
/// ```
/// # async fn example() {
/// use idem_runtime::Idempotency;
///
/// let idempotency = Idempotency::in_memory();
/// // axum::serve(listener, app).with_graceful_shutdown(stop).await?;
/// idempotency.drain().await;
/// # }
/// ```
#[derive(Clone)]
pub struct Idempotency {
    handle: Arc<Handle>,
}

/// What the clones share, and the executions do not: when it goes, nobody can drain any more.
struct Handle {
    core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let running = self.core.tracker.len();
        if running > 0 {
            tracing::warn!(running, "the last `Idempotency` was dropped while bodies run; call `drain().await` before");
        }
    }
}

pub(crate) struct Core {
    store: Arc<dyn ErasedStore>,
    pub(crate) clock: Arc<dyn Clock>,
    duties: Duties,
    expirer: Expirer,
    lease: Duration,
    places: Arc<Places>,
    /// Those of executions in shadow mode, as many, so that these never take one from an enforced one.
    shadows: Arc<Places>,
    tracker: TaskTracker,
}

/// A request as the engine sees it: computed once, and carried to the end.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// Whose key, and which.
    pub key: StorageKey,
    /// What must be equal on a retry.
    pub fingerprint: Fingerprint,
    /// The endpoint's rules.
    pub rules: Rules,
    /// The endpoint, for operators.
    pub endpoint: Endpoint,
    /// The trace that the request belongs to, for operators.
    pub trace: Option<TraceParent>,
}

impl Attempt {
    /// An attempt on a key, from an endpoint that is not named.
    pub const fn new(key: StorageKey, fingerprint: Fingerprint, rules: Rules) -> Self {
        Self { key, fingerprint, rules, endpoint: Endpoint::UNKNOWN, trace: None }
    }

    /// The same attempt, from this endpoint.
    #[must_use]
    pub const fn at(self, endpoint: Endpoint) -> Self {
        Self { endpoint, ..self }
    }

    /// The same attempt, within this trace.
    #[must_use]
    pub const fn within(self, trace: Option<TraceParent>) -> Self {
        Self { trace, ..self }
    }
}

/// What became of an attempt that was not refused.
#[derive(Debug)]
pub enum Answer<T> {
    /// The body ran for this request.
    Ran(T),
    /// The body ran earlier; this is its recorded answer.
    Recorded(Replay),
}

/// What a record gives back.
#[derive(Clone, Debug)]
pub struct Replay {
    answer: Bytes,
    record: Record,
}

impl Replay {
    /// The recorded answer, in the format of the adapter.
    pub fn answer(&self) -> &Bytes {
        &self.answer
    }

    /// Where the execution came from that left the record; `None` where that is not known. Taken from the record when it is
    /// asked for.
    pub fn origin(&self) -> Option<Origin> {
        self.record.origin()
    }
}

/// Why the body did not run, or why its answer is not to be had.
///
/// ```
/// use idem_runtime::Refused;
///
/// /// What an adapter for HTTP makes of it.
/// fn status(refused: &Refused) -> u16 {
///     match refused {
///         Refused::Mismatch => 422,
///         Refused::InFlight | Refused::OutcomeUnknown | Refused::NotReplayable => 409,
///         _ => 503,
///     }
/// }
/// assert_eq!(status(&Refused::StoreFull), 503);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Refused {
    /// An execution with the same fingerprint is in flight.
    InFlight,
    /// The key is in use with another fingerprint.
    Mismatch,
    /// The owner of the claim is gone, and what its body did is unknown.
    OutcomeUnknown,
    /// The body ran, but its answer was not kept.
    NotReplayable,
    /// The store could not be asked, or its answer not understood.
    StoreUnavailable(StoreError),
    /// The store has no room for a new key.
    StoreFull,
    /// As many bodies run as may run at once.
    TooManyExecutions,
}

impl Refused {
    /// Counts a refusal for want of room.
    fn count(&self) {
        match self {
            Self::StoreFull => counted::store_full(),
            Self::TooManyExecutions => counted::too_many_executions(),
            _ => {}
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlight => "an execution with this key is in flight",
            Self::Mismatch => "the key is in use with another fingerprint",
            Self::OutcomeUnknown => "the outcome of the execution with this key is unknown",
            Self::NotReplayable => "the body ran, but its answer was not kept",
            Self::StoreUnavailable(_) => "the store is unavailable",
            Self::StoreFull => "the store has no room for a new key",
            Self::TooManyExecutions => "too many bodies run at once",
        })
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::StoreUnavailable(source) => Some(source),
            _ => None,
        }
    }
}

/// One look at the store.
enum Look<B, T> {
    /// The key was free, and the body ran. `None`: its outcome is not known here, since its task was torn down or the
    /// claim lost to another run.
    Ran(Option<T>),
    /// Something stands in the way; the body has not started and is given back.
    Blocked(Block, B),
}

pub(crate) enum Block {
    InFlight(Fingerprint),
    Recorded(Record),
    Refused(Refused),
}

impl Idempotency {
    /// An engine over a new [`MemoryStore`] with the default limits.
    pub fn in_memory() -> Self {
        Self::new(MemoryStore::new())
    }

    /// An engine over `store`.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// An engine over `store` with settings of your own.
    ///
    /// ```
    /// use std::time::Duration;
    /// use idem_runtime::{Idempotency, MemoryStore};
    ///
    /// let idempotency = Idempotency::builder(MemoryStore::new()).lease(Duration::from_secs(60)).build();
    /// # let _ = idempotency;
    /// ```
    pub fn builder(store: impl Store) -> IdempotencyBuilder {
        counted::store(&store);
        IdempotencyBuilder::new(Arc::new(Erased::new(store)))
    }

    /// Waits until no execution is running, those included whose client is gone, and then until the
    /// [store](Store::drained) has nothing left to do: a claim that was granted while nobody heard of it is given back. Call it
    /// after the server has stopped taking requests; executions that start meanwhile are waited for, too.
    ///
    /// Cancel safe: dropping the future only stops the waiting. Where a process must end at some time, use
    /// [`drain_until`](Self::drain_until).
    pub async fn drain(&self) {
        self.handle.core.tracker.close();
        loop {
            self.handle.core.tracker.wait().await;
            Arc::clone(&self.handle.core.store).drained().await;
            // An execution may have started while the store was at it.
            if self.handle.core.tracker.is_empty() {
                return;
            }
        }
    }

    /// How many executions are running.
    pub fn executions(&self) -> usize {
        self.handle.core.places.taken()
    }

    /// Runs `body` if the key is free, and otherwise says what stands under it.
    ///
    /// `body` is called at most once, in a task of its own, and nothing that happens to the returned future stops it. It
    /// must not panic: a panic leaves the key abandoned, and the caller is told that the outcome is unknown.
    ///
    /// # Errors
    /// [`Refused`] says why the body did not run. [`Refused::OutcomeUnknown`] alone may also mean that the body's task was
    /// torn down together with the async runtime, or that another run took the claim over ([`Abandoned::Rerun`](crate::Abandoned::Rerun)).
    ///
    /// # Cancel safety
    /// Dropped before the store was asked, the future leaves the key as it was. Dropped while a remote store is being asked,
    /// it changes nothing: `body` runs if the store grants the claim in time, and otherwise a claim that comes late is
    /// released. Dropped later, it changes nothing either.
    pub async fn run<B, F, T>(&self, attempt: Attempt, body: B) -> Result<Answer<T>, Refused>
    where
        B: FnOnce() -> F + Send + 'static,
        F: Future<Output = Ended<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.run_leased(attempt, |_| body()).await
    }

    /// As [`run`](Self::run), for a body that wants to know whether its claim is still its own.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub async fn run_leased<B, F, T>(&self, attempt: Attempt, body: B) -> Result<Answer<T>, Refused>
    where
        B: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Ended<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.attempt(&attempt, body).await.map_err(|(refused, _)| refused)
    }

    /// As [`run_leased`](Self::run_leased), but where the store cannot be asked, `body` runs all the same: **without
    /// protection**, and its answer is not recorded. While the store is down a retry runs it again.
    ///
    /// Only for bodies that do less harm twice than not at all.
    ///
    /// # Errors
    /// As for [`run`](Self::run), but for [`Refused::StoreUnavailable`], which then means that something stands under the key
    /// that cannot be read ([`StoreError::Unreadable`]).
    pub async fn dangerously_run_without_store<B, F, T>(&self, attempt: Attempt, body: B) -> Result<Answer<T>, Refused>
    where
        B: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Ended<T>> + Send + 'static,
        T: Send + 'static,
    {
        match self.attempt(&attempt, body).await {
            Err((Refused::StoreUnavailable(error), Some(body))) => {
                let core = &self.handle.core;
                let place = core.places.take().ok_or(Refused::TooManyExecutions).inspect_err(Refused::count)?;
                let cause = error.cause();
                tracing::error!(key = %attempt.key, %error, cause, "the store is unavailable; the body runs without protection, as its policy says");
                let answer = core.spawn(Box::pin(unprotected(Arc::clone(core), place, body(Lease::default()))));
                answer.await.map(Answer::Ran).map_err(|_| Refused::OutcomeUnknown)
            }
            answered => answered.map_err(|(refused, _)| refused),
        }
    }

    /// A refusal gives the body back where it was not started and the engine itself refused.
    async fn attempt<B, F, T>(&self, attempt: &Attempt, body: B) -> Result<Answer<T>, (Refused, Option<B>)>
    where
        B: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Ended<T>> + Send + 'static,
        T: Send + 'static,
    {
        let core = &self.handle.core;
        let mut body = body;
        let mut waiting = None;
        loop {
            let block = match core.look(attempt, body).await {
                Look::Ran(Some(response)) => return Ok(Answer::Ran(response)),
                Look::Ran(None) => return Err((Refused::OutcomeUnknown, None)),
                Look::Blocked(block, unused) => {
                    body = unused;
                    block
                }
            };
            match block {
                // The body has run, or may have, so it is not given back.
                Block::Refused(refused @ Refused::StoreUnavailable(StoreError::Unreadable(_))) => {
                    return Err((refused, None));
                }
                Block::Refused(refused) => {
                    refused.count();
                    return Err((refused, Some(body)));
                }
                Block::Recorded(record) if *record.fingerprint() != attempt.fingerprint => {
                    return Err((Refused::Mismatch, None));
                }
                Block::Recorded(record) => {
                    // The body has run, so it is not given back, whatever can be read.
                    let content = record
                        .read()
                        .map_err(|error| (Refused::StoreUnavailable(StoreError::unreadable(error)), None))?;
                    let answer = content.answer.ok_or((Refused::NotReplayable, None))?;
                    return Ok(Answer::Recorded(Replay { answer, record }));
                }
                Block::InFlight(fingerprint) if fingerprint != attempt.fingerprint => {
                    return Err((Refused::Mismatch, None));
                }
                Block::InFlight(_) => {
                    let Some(most) = attempt.rules.wait else { return Err((Refused::InFlight, None)) };
                    let waiting = waiting.get_or_insert_with(|| Waiting::at_most(most));
                    if !waiting.wait(core.store.clone().ended(attempt.key)).await {
                        return Err((Refused::InFlight, None));
                    }
                }
            }
        }
    }
}

impl Core {
    /// Asks the store once, and runs the body if the key is free.
    ///
    /// `begin` must not be cut in half, or a claim could be left without an owner. It is polled once where it is, which is
    /// all that a store in memory needs; if it is pending, a task takes it over together with the body.
    async fn look<B, F, T>(self: &Arc<Self>, attempt: &Attempt, body: B) -> Look<B, T>
    where
        B: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Ended<T>> + Send + 'static,
        T: Send + 'static,
    {
        let mut asked = self.ask(attempt);
        let verdict = match at_once(&mut asked).await {
            Some(begun) => self.judge(attempt, begun),
            None => Verdict::Asking(asked),
        };
        let execution = match verdict {
            Verdict::Blocked(block) => return Look::Blocked(block, body),
            Verdict::Run(execution) => execution,
            unsettled => {
                let mut rest = Arc::clone(self).resolve(*attempt, unsettled);
                match at_once(&mut rest).await {
                    Some(Err(block)) => return Look::Blocked(block, body),
                    Some(Ok(execution)) => execution,
                    None => return self.look_in_task(attempt.key, rest, body).await,
                }
            }
        };
        let lease = execution.lease();
        // In a box of its own before anything else, since it is large and would be moved from hand to hand.
        let run = Box::pin(execution.run(body(lease)));
        Look::Ran(self.spawn(run).await.ok().flatten())
    }

    async fn look_in_task<B, F, T>(
        self: &Arc<Self>,
        key: StorageKey,
        mut rest: BoxFuture<Result<Execution, Block>>,
        body: B,
    ) -> Look<B, T>
    where
        B: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Ended<T>> + Send + 'static,
        T: Send + 'static,
    {
        let core = Arc::clone(self);
        let task = Box::pin(async move {
            match timeout(STEP, rest.as_mut()).await {
                Ok(Ok(execution)) => {
                    let lease = execution.lease();
                    Ok(execution.run(body(lease)).await)
                }
                Ok(Err(block)) => Err((block, body)),
                Err(_) => {
                    core.release_late(key, rest);
                    Err((Block::Refused(Refused::StoreUnavailable(ending::silent(STEP))), body))
                }
            }
        });
        match self.spawn(task).await {
            Ok(Ok(response)) => Look::Ran(response),
            Ok(Err((block, body))) => Look::Blocked(block, body),
            Err(_) => Look::Ran(None),
        }
    }

    /// The client was told that nothing is done, so a new claim that comes late goes back. One that comes later than that is
    /// nobody's, until its lease is over; so is one that was taken over, since an earlier body may have run under it.
    fn release_late(self: &Arc<Self>, key: StorageKey, rest: BoxFuture<Result<Execution, Block>>) {
        let lease = self.lease;
        drop(self.spawn(Box::pin(async move {
            if let Ok(Ok(late)) = timeout(lease, rest).await
                && !late.took_over
            {
                ending::release(key, late.claim).await;
            }
        })));
    }

    /// A task that [`Idempotency::drain`] waits for, in the request's span and observation.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: BoxFuture<T>) -> JoinHandle<T> {
        self.tracker.spawn(carried(task).in_current_span().with_current_subscriber())
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("executions", &self.executions()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

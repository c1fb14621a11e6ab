//! The engine: from a request with a key to a response.
//!
//! `run` is the story. `begin` asks the store, `decide` is the table of what follows, `execute` runs the handler under its
//! claim, `renew` keeps the claim meanwhile, and `complete` ends it. Beside that path are `wait`, `drain`, `shadow` and `operator`.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Once};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinHandle, unconstrained};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

#[cfg(feature = "cached")]
use crate::cached_store::CachedStore;
use crate::clock::Clock;
use crate::key::{Key, StorageKey};
use crate::memory::MemoryStore;
use crate::scope::Scope;
use crate::store::{Store, StoreCapabilities};
use crate::telemetry::counters;
use crate::telemetry::span::RequestSpan;
use crate::tracing_context::in_current_context;

mod begin;
mod builder;
mod complete;
mod decide;
mod drain;
mod dyn_store;
mod execute;
mod operator;
mod renew;
mod run;
mod shadow;
mod transaction;
mod wait;

pub use builder::IdempotencyBuilder;
pub use drain::DrainTimeout;
pub use operator::{KeyReport, KeyStatus, SettleError, Settled};
pub use shadow::{Shadow, ShadowOutcome};

/// The engine: it runs handlers, and keeps claims and records in a store. A clone is cheap, and shares the store.
///
/// # Each execution has its own task
///
/// A web server drops the future of a request when the client hangs up, at any `await`. So the engine runs each handler in a
/// tracked task, and the request only waits for it: a handler that started runs to its end, and its response is recorded. The
/// task carries the request's `tracing` span and subscriber. Task-locals do not reach the handler; pass what it needs as an
/// argument.
///
/// # Shutting down
///
/// A server that has shut down gracefully has sent its responses, but handlers whose client hung up may still run. Then call
/// [`drain`](Self::drain).
///
/// ```
/// # async fn example() {
/// use idem_runtime::Idempotency;
///
/// let idempotency = Idempotency::in_memory();
/// // Serve until the server has shut down gracefully; then:
/// idempotency.drain().await;
/// # }
/// ```
#[derive(Clone)]
pub struct Idempotency {
    handle: Arc<Handle>,
}

/// What the clones share and the executions do not: when it is dropped, `drain` can no longer be called.
struct Handle {
    core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let running = self.core.tracker.len();
        if running > 0 {
            tracing::warn!(
                running,
                "the last `Idempotency` was dropped while handlers run; call `drain().await` before"
            );
        }
    }
}

/// What the executions share.
struct Core {
    store: Arc<dyn dyn_store::DynStore>,
    capabilities: StoreCapabilities,
    clock: Arc<dyn Clock>,
    /// See [`Core::begin_unexpired`]. Empty if the store judges expiry.
    expiry_locks: Vec<Arc<Mutex<()>>>,
    namespace: Box<str>,
    lease: Duration,
    max_executions: usize,
    permits: Arc<Semaphore>,
    /// As many, for executions in shadow mode, so that these never take one from an enforced one.
    shadow_permits: Arc<Semaphore>,
    tracker: TaskTracker,
    ticks: renew::Ticks,
    warned_of_round_trip: Once,
}

impl Idempotency {
    /// Makes an engine over a new [`MemoryStore`] with the default limits.
    pub fn in_memory() -> Self {
        Self::new(MemoryStore::new())
    }

    /// Makes an engine over `store`.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// Returns a builder of an engine over `store`, to change the settings.
    ///
    /// ```
    /// use std::time::Duration;
    /// use idem_runtime::{Idempotency, MemoryStore};
    ///
    /// let idempotency = Idempotency::builder(MemoryStore::new()).lease(Duration::from_secs(60)).build();
    /// # let _ = idempotency;
    /// ```
    pub fn builder<S: Store>(store: S) -> IdempotencyBuilder {
        counters::store::<S>();
        IdempotencyBuilder::new(Arc::new(store))
    }

    /// Returns the store, if it is an `S`, or the one behind a cache or in an `Arc`.
    pub(crate) fn store<S: Store>(&self) -> Option<&S> {
        fn find<S: Store>(store: &dyn Any) -> Option<&S> {
            store.downcast_ref().or_else(|| store.downcast_ref::<Arc<S>>().map(|shared| &**shared))
        }
        let store: &dyn Any = &*self.handle.core.store;
        #[cfg(feature = "cached")]
        if let Some(cached) = find::<CachedStore<S>>(store) {
            return Some(cached.store());
        } else if let Some(cached) = find::<CachedStore<Arc<S>>>(store) {
            return Some(cached.store());
        }
        find(store)
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.handle.core.namespace
    }

    /// Returns the storage key of `key` within `scope` and the engine's [namespace](IdempotencyBuilder::namespace).
    pub fn storage_key(&self, scope: &Scope, key: &Key) -> StorageKey {
        StorageKey::new(&self.handle.core.namespace, scope, key)
    }

    /// Returns how many executions are running. A streamed response counts until its caller has read it or is gone.
    pub fn executions(&self) -> usize {
        self.handle.core.max_executions - self.handle.core.permits.available_permits()
    }
}

impl Core {
    /// Spawns a task that [`Idempotency::drain`] waits for, within the request's spans.
    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn(in_request(task))
    }

    /// Spawns a task within the request's spans, for a task of [`spawn`](Self::spawn) that waits for it.
    fn spawn_untracked<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        tokio::spawn(in_request(task))
    }

    /// Returns the lock under which an expired record of `key` is replaced.
    fn expiry_lock(&self, key: &StorageKey) -> &Arc<Mutex<()>> {
        &self.expiry_locks[usize::from(key.as_bytes()[31]) % self.expiry_locks.len()]
    }
}

/// Returns `task` within the spans and the subscriber of the current request.
fn in_request<F: Future>(task: F) -> impl Future<Output = F::Output> {
    in_current_context(RequestSpan::current().carry(task))
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("executions", &self.executions()).finish_non_exhaustive()
    }
}

/// Polls `work` once, for the current task. Returns its result if it is ready.
async fn poll_once<F: Future + Unpin>(mut work: F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Awaits `work` for at most `time`. What is ready at once, as all that a store in memory does, needs no timer: an async runtime may
/// have none.
async fn for_at_most<F: Future>(time: Duration, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    let mut timer = pin!(unconstrained(async { sleep(time).await }));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Polls `work` once, from code that cannot wait. A caller that gets a pending future must poll it again.
fn poll_now<F: Future + Unpin>(work: &mut F) -> Option<F::Output> {
    match Pin::new(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests;

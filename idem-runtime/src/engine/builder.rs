//! Settings of an engine.

use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::TaskTracker;

use super::dyn_store::DynStore;
use super::renew::Ticks;
use super::{Core, Handle, Idempotency};
use crate::clock::{Clock, ContainedClock, SystemClock};
use crate::telemetry::counters;

const DEFAULT_LEASE: Duration = Duration::from_secs(30);
/// With a shorter one, renewing would be all that is done.
const MIN_LEASE: Duration = Duration::from_millis(10);
const DEFAULT_MAX_EXECUTIONS: usize = 16_384;
/// Two keys share a lock, which only costs time.
const EXPIRY_LOCKS: usize = 64;

/// Sets up an [`Idempotency`].
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Idempotency, MemoryStore};
///
/// let idempotency = Idempotency::builder(MemoryStore::new())
///     .namespace("shop")
///     .lease(Duration::from_secs(60))
///     .max_executions(1_000)
///     .build();
/// assert_eq!(idempotency.executions(), 0);
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct IdempotencyBuilder {
    store: Arc<dyn DynStore>,
    clock: Option<Arc<dyn Clock>>,
    namespace: Box<str>,
    lease: Duration,
    max_executions: usize,
}

impl IdempotencyBuilder {
    pub(super) fn new(store: Arc<dyn DynStore>) -> Self {
        Self {
            store,
            clock: None,
            namespace: Box::default(),
            lease: DEFAULT_LEASE,
            max_executions: DEFAULT_MAX_EXECUTIONS,
        }
    }

    /// Separates the keys of this service from those of other services in the same store. It is part of every storage key, so
    /// set it before the first key is stored, and never change it. Default: empty, which is right for a store of one service.
    pub fn namespace(mut self, namespace: impl AsRef<str>) -> Self {
        self.namespace = namespace.as_ref().into();
        self
    }

    /// Sets how long a claim in a remote store lives without renewal. While the handler runs, the claim is renewed three times in that
    /// span. The lease does not depend on the TTL: after a crash it decides how long a retry is told that the execution is still in flight.
    /// If the store takes longer than a lease to grant a claim, the request is refused with 503, and the claim is released. Default: 30
    /// seconds; at least 10 milliseconds. A store in memory does not use it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(MIN_LEASE);
        self
    }

    /// Sets how many executions may run at once. Above that a new key is refused with 503, and existing keys are still served. Handlers
    /// whose client hung up count, too, and so do streamed responses that their clients have not read: a stream takes up to the size of its
    /// record in memory. Executions in shadow mode have a separate limit of the same size. Default: 16,384.
    pub fn max_executions(mut self, max_executions: usize) -> Self {
        self.max_executions = max_executions.min(Semaphore::MAX_PERMITS);
        self
    }

    /// Sets the clock by which records expire. Default: [`SystemClock`]. If it panics, the time that it showed last counts.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(ContainedClock::new(clock)));
        self
    }

    /// Builds the engine.
    pub fn build(self) -> Idempotency {
        counters::describe();
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock::new()));
        let capabilities = self.store.attach(&clock);
        if self.namespace.is_empty() && capabilities.judges_expiry && !capabilities.claims_live_with_owner {
            tracing::warn!(
                "the idempotency store may be shared, and no namespace is set; if another service uses the same store, set \
                 `Idempotency::builder(store).namespace(\"..\")` in both"
            );
        }
        let expiry_locks = if capabilities.judges_expiry { 0 } else { EXPIRY_LOCKS };
        let core = Core {
            store: self.store,
            capabilities,
            clock,
            expiry_locks: (0..expiry_locks).map(|_| Arc::new(Mutex::default())).collect(),
            namespace: self.namespace,
            lease: self.lease,
            max_executions: self.max_executions,
            permits: Arc::new(Semaphore::new(self.max_executions)),
            shadow_permits: Arc::new(Semaphore::new(self.max_executions)),
            tracker: TaskTracker::new(),
            ticks: Ticks::new(),
            warned_of_round_trip: Once::new(),
        };
        Idempotency { handle: Arc::new(Handle { core: Arc::new(core) }) }
    }
}

impl fmt::Debug for IdempotencyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyBuilder")
            .field("namespace", &self.namespace)
            .field("lease", &self.lease)
            .field("max_executions", &self.max_executions)
            .finish_non_exhaustive()
    }
}

//! Settings of an engine.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::places::Places;
use super::{Core, Handle, Idempotency};
use crate::clock::{Clock, SystemClock};
use crate::counted;
use crate::erased::ErasedStore;
use crate::expire::Expirer;

/// How long a claim in a remote store lives without renewal, unless the builder says otherwise.
const LEASE: Duration = Duration::from_secs(30);
/// Shorter than any store's answer, so renewing would be all that is done.
const SHORTEST_LEASE: Duration = Duration::from_millis(10);
/// How many bodies may run at once, unless the builder says otherwise.
const MAX_EXECUTIONS: usize = 16_384;

/// Sets up an [`Idempotency`].
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Idempotency, MemoryStore};
///
/// let idempotency = Idempotency::builder(MemoryStore::new())
///     .lease(Duration::from_secs(60))
///     .max_executions(1_000)
///     .build();
/// assert_eq!(idempotency.executions(), 0);
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct IdempotencyBuilder {
    store: Arc<dyn ErasedStore>,
    clock: Option<Arc<dyn Clock>>,
    lease: Duration,
    max_executions: usize,
}

impl IdempotencyBuilder {
    pub(super) fn new(store: Arc<dyn ErasedStore>) -> Self {
        Self { store, clock: None, lease: LEASE, max_executions: MAX_EXECUTIONS }
    }

    /// How long a claim in a remote store lives without renewal. While the body runs it is renewed three times in that
    /// span. Never the same number as the TTL: after a crash it decides how long a retry is told that the execution is
    /// still in flight. Default: 30 seconds; at least 10 milliseconds. A store in memory has no use for it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(SHORTEST_LEASE);
        self
    }

    /// How many bodies may run at once; over it a new key is refused with 503, and existing keys are still answered.
    /// Bodies whose client hung up count, too. As many bodies in shadow mode are recorded at once, which do not count
    /// here. Default: 16,384.
    pub fn max_executions(mut self, max_executions: usize) -> Self {
        self.max_executions = max_executions;
        self
    }

    /// The clock by which records expire. Default: [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Builds the engine.
    pub fn build(self) -> Idempotency {
        counted::describe();
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock::new()));
        let core = Core {
            duties: self.store.attach(&clock),
            store: self.store,
            clock,
            expirer: Expirer::default(),
            lease: self.lease,
            places: Arc::new(Places::new(self.max_executions)),
            shadows: Arc::new(Places::new(self.max_executions)),
            tracker: TaskTracker::new(),
        };
        Idempotency { handle: Arc::new(Handle { core: Arc::new(core) }) }
    }
}

impl fmt::Debug for IdempotencyBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyBuilder")
            .field("lease", &self.lease)
            .field("max_executions", &self.max_executions)
            .finish_non_exhaustive()
    }
}

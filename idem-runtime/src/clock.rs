//! Clocks, and the points in time that they return.
//!
//! The engine's [`Clock`] alone decides whether a record has expired. Timers of a cache or a server only reclaim memory.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::panics::discard;

/// A point in time: nanoseconds since the Unix epoch, enough until the year 2554.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::Timestamp;
///
/// let noon = Timestamp::from_nanos(43_200_000_000_000);
/// assert_eq!(noon.after(Duration::from_secs(1)).as_nanos(), 43_201_000_000_000);
/// assert_eq!(noon.after(Duration::MAX), Timestamp::NEVER);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A time that never comes: a record with this expiry lives for ever.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns the point `nanos` nanoseconds after the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns this time plus `duration`, or [`Timestamp::NEVER`] if the sum does not fit: a TTL that is too long never becomes a short
    /// one.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// Returns how long `earlier` was before this time, or zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Tells the time. It must never go backwards.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use idem_runtime::{Clock, Idempotency, MemoryStore, Timestamp};
///
/// /// A clock that counts how often it is asked, one second each time.
/// struct Ticks(AtomicU64);
///
/// impl Clock for Ticks {
///     fn now(&self) -> Timestamp {
///         Timestamp::from_nanos(self.0.fetch_add(1, Ordering::SeqCst) * 1_000_000_000)
///     }
/// }
///
/// let idempotency = Idempotency::builder(MemoryStore::new()).clock(Ticks(AtomicU64::new(0))).build();
/// # let _ = idempotency;
/// ```
pub trait Clock: Send + Sync + 'static {
    /// Returns the time now.
    fn now(&self) -> Timestamp;

    /// Returns whether this clock goes as fast as the machine's monotonic one. Only then may a timer of the operating system or
    /// of a cache reclaim what has expired.
    #[doc(hidden)]
    fn is_real_time(&self) -> bool {
        false
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn is_real_time(&self) -> bool {
        (**self).is_real_time()
    }
}

/// The machine's wall clock, which is read once. From then on the monotonic clock counts, so a change of the wall clock while the
/// process runs neither shortens nor lengthens a TTL.
///
/// ```
/// use idem_runtime::{Clock, SystemClock};
///
/// let clock = SystemClock::new();
/// let before = clock.now();
/// assert!(before <= clock.now());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Instant,
    started_at: Timestamp,
}

impl SystemClock {
    /// Makes a clock that starts at the machine's present wall time.
    pub fn new() -> Self {
        // A wall clock before 1970 counts as 1970: only differences matter within one process.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_at: Timestamp(0).after(since_epoch) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.started_at.after(self.started.elapsed())
    }

    fn is_real_time(&self) -> bool {
        true
    }
}

/// A clock for tests that does not move by itself. Clones share the time.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Clock, ManualClock};
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now(), before.after(Duration::from_secs(60)));
/// ```
#[derive(Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Makes a clock that shows the wall time at which it was made.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(SystemClock::new().now().as_nanos())))
    }

    /// Moves this clock, and every clone of it, forward.
    pub fn advance(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // It cannot fail, since the closure always returns a value.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| Some(now.saturating_add(nanos)));
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ManualClock").field(&self.now()).finish()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// A clock of the service. If it panics, the time that it showed last counts. It never shows [`Timestamp::NEVER`], at which what lives for
/// ever would expire.
pub(crate) struct ContainedClock<C> {
    clock: C,
    last: AtomicU64,
}

impl<C: Clock> ContainedClock<C> {
    pub(crate) fn new(clock: C) -> Self {
        Self { clock, last: AtomicU64::new(SystemClock::new().now().as_nanos()) }
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Clock> Clock for ContainedClock<C> {
    fn now(&self) -> Timestamp {
        match catch_unwind(AssertUnwindSafe(|| self.clock.now())) {
            Ok(now) => {
                let now = now.min(Timestamp(Timestamp::NEVER.0 - 1));
                self.last.store(now.as_nanos(), Ordering::Relaxed);
                now
            }
            Err(panic) => {
                discard(panic);
                tracing::error!("the clock panicked; the time that it showed last counts");
                Timestamp(self.last.load(Ordering::Relaxed))
            }
        }
    }

    fn is_real_time(&self) -> bool {
        self.clock.is_real_time()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_that_does_not_fit_never_comes() {
        assert_eq!(Timestamp::from_nanos(1).after(Duration::MAX), Timestamp::NEVER);
        assert_eq!(Timestamp::NEVER.after(Duration::from_nanos(1)), Timestamp::NEVER);
    }

    #[test]
    fn the_system_clock_goes_forward() {
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(first > Timestamp::from_nanos(1_700_000_000_000_000_000), "counts from the epoch");
    }

    #[test]
    fn clones_of_a_manual_clock_share_the_time() {
        let clock = ManualClock::new();
        let copy = clock.clone();
        let before = copy.now();
        clock.advance(Duration::from_nanos(1));
        assert_eq!(copy.now(), before.after(Duration::from_nanos(1)));
    }
}

//! Waiting for the end of another request's execution.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::dyn_store::BoxFuture;
use super::{Core, poll_once};
use crate::attempt::Attempt;
use crate::telemetry::counters::GaugeGuard;

/// A request that waits for another request's execution.
pub(super) struct InFlightWait {
    until: Instant,
    /// How often the store has woken this request at once, in a row.
    spurious: u32,
    last_look: bool,
}

impl InFlightWait {
    /// This many wake-ups at once are believed: another execution may have ended between the two looks at the store.
    const BELIEVED: u32 = 3;
    const MAX_PAUSE: Duration = Duration::from_millis(100);
    const LAST_LOOK: Duration = Duration::from_secs(1);

    /// Longer than any request waits, and short enough to be added to any time.
    const MAX_WAIT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    pub(super) fn new(max: Duration) -> Self {
        Self { until: Instant::now() + max.min(Self::MAX_WAIT), spurious: 0, last_look: false }
    }

    /// Returns how long a look at the store may take from now: a moment longer than the wait, since the record may be there.
    pub(super) fn time_left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()) + Self::LAST_LOOK
    }

    /// Waits for `ended`, and returns when the store is to be asked again: also when the time is up, since the record may be there
    /// although this request was not polled. Returns `false` if that has happened.
    pub(super) async fn wait(&mut self, mut ended: BoxFuture<()>) -> bool {
        let _counted = GaugeGuard::waiting();
        if self.last_look {
            return false;
        }
        let Some(timer) = timer(self.until) else { return false };
        let mut timer = Box::pin(timer);
        if poll_once(&mut ended).await.is_none() {
            // A wake-up that was waited for has a reason: there is no pause after it.
            self.spurious = 0;
            tokio::select! {
                biased;
                () = &mut ended => {}
                () = &mut timer => self.last_look = true,
            }
            return true;
        }
        // The store says at once that the claim has ended, and reported it in flight. If that goes on, its wake-ups have no reason,
        // and a growing pause limits how often it is asked.
        self.spurious += 1;
        if let Some(doublings) = self.spurious.checked_sub(Self::BELIEVED + 1) {
            let pause = Duration::from_millis(1 << doublings.min(7)).min(Self::MAX_PAUSE);
            timer.as_mut().reset((Instant::now() + pause).min(self.until));
            timer.await;
        }
        self.last_look = self.until <= Instant::now();
        true
    }
}

impl Core {
    /// Waits for the execution in flight under the key of `attempt`, as [`InFlightWait::wait`] does. `waiter` is made for the first wait.
    pub(super) async fn wait(&self, attempt: &Attempt, waiter: &mut Option<InFlightWait>) -> bool {
        let waiter = waiter.get_or_insert_with(|| InFlightWait::new(attempt.rules.wait.unwrap_or_default()));
        waiter.wait(Arc::clone(&self.store).ended(attempt.key)).await
    }
}

/// Returns a timer. `None` if the async runtime has no time driver: then a request cannot wait for a limited time.
fn timer(until: Instant) -> Option<Sleep> {
    let timer = catch_unwind(AssertUnwindSafe(|| sleep_until(until))).ok();
    if timer.is_none() {
        tracing::error!(
            "a request cannot wait for another one, since the async runtime has no time driver; call `enable_time` on its builder"
        );
    }
    timer
}

//! Waiting for the end of somebody else's execution.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::counted::OneMore;
use crate::erased::BoxFuture;

/// A request that waits for somebody else's execution.
pub(super) struct Waiting {
    until: Instant,
    /// What to sleep at least after a wake-up, for stores that wake without a reason.
    pause: Duration,
}

impl Waiting {
    const LONGEST_PAUSE: Duration = Duration::from_millis(100);

    /// Longer than anybody waits, and short enough to be added to any time.
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    pub(super) fn at_most(most: Duration) -> Self {
        Self { until: Instant::now() + most.min(Self::LONGEST), pause: Duration::ZERO }
    }

    /// Waits for `ended`; `false` when the time is up.
    pub(super) async fn wait(&mut self, ended: BoxFuture<()>) -> bool {
        let _counted = OneMore::waiting();
        let asked = Instant::now();
        if self.until <= asked || timeout_at(self.until, ended).await.is_err() {
            return false;
        }
        // The first wake-up is believed. After that a pause grows, so that a store whose `ended` is always ready is
        // polled, not hammered.
        if !self.pause.is_zero() {
            sleep_until((asked + self.pause).min(self.until)).await;
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), Self::LONGEST_PAUSE);
        true
    }
}

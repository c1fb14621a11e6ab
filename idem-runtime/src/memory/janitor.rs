//! Reclaims memory without traffic: a thread that removes expired records if no request comes to do it.

use std::sync::{Arc, Once, PoisonError, Weak};
use std::time::Duration;

use super::records::GRACE;
use super::{Shard, Shared};
use crate::clock::Timestamp;
use crate::sync::{Condvar, Mutex, thread};

/// How often the janitor works.
const ROUND: Duration = Duration::from_millis(200);
/// How many records of a shard it removes before it lets others run.
const BATCH: usize = 64;
/// After how many records that it looked at in a round it leaves the other shards to the next round, unless the store is full. A
/// microsecond for each is a twentieth of a processor.
const MAX_LOOKED_AT: usize = 8192;

/// Starts the janitor's thread when there is something to do, and stops it with the store.
pub(super) struct Janitor {
    started: Once,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits for one round. Returns `true` if the store is gone.
    fn wait(&self) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, ROUND, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

impl Janitor {
    pub(super) fn new() -> Self {
        Self { started: Once::new(), stop: Arc::default() }
    }

    /// Starts the thread for the first key. Without a thread, records are still removed by requests, only later.
    pub(super) fn start(&self, shared: &Arc<Shared>) {
        self.started.call_once(|| {
            let (shared, stop) = (Arc::downgrade(shared), Arc::clone(&self.stop));
            let started = thread::Builder::new().name("idem-janitor".into()).spawn(move || {
                while !stop.wait() && round(&shared) {}
                #[cfg(feature = "metrics")]
                super::metrics::publish();
            });
            if let Err(error) = started {
                tracing::warn!(%error, "no janitor thread: the memory of expired records is reclaimed only by requests");
            }
        });
    }

    pub(super) fn stop(&self) {
        *self.stop.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
    }
}

/// Visits all shards. Returns `false` if the store is gone.
pub(super) fn round(shared: &Weak<Shared>) -> bool {
    let Some(shared) = shared.upgrade() else { return false };
    #[cfg(feature = "metrics")]
    super::metrics::publish();
    let (now, real_time) = (shared.clock().now(), shared.clock().is_real_time());
    // In real time moka removes what has expired, a few seconds later, unless a new key needs the room now.
    let mut look = if shared.quota.is_nearly_full() { MAX_LOOKED_AT } else { 0 };
    for shard in shared.shards_in_turn() {
        let earliest = shard.records.earliest();
        if earliest <= now && (!real_time || shared.quota.is_full()) {
            sweep(shard, now);
        } else if look > 0 && earliest.after(GRACE / 2) <= now {
            // Before moka hides them: then no request finds them, and they take room until moka removes them.
            look = look.saturating_sub(sweep(shard, now));
        }
        shard.records.run_pending_tasks(now, real_time);
    }
    true
}

/// Removes what has expired from a shard. Returns how many records it looked at.
fn sweep(shard: &Shard, now: Timestamp) -> usize {
    let mut looked_at = 0;
    loop {
        let swept = shard.sweep(now, BATCH, usize::MAX);
        looked_at += swept.looked_at;
        if swept.removed < BATCH {
            return looked_at;
        }
        // On a machine with few cores, requests get the processor.
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_round_begins_after_its_time_and_none_once_the_store_is_gone() {
        let janitor = Janitor::new();
        let started = Instant::now();
        assert!(!janitor.stop.wait());
        assert!(started.elapsed() >= ROUND);
        janitor.stop();
        assert!(janitor.stop.wait());
    }
}

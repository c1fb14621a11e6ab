//! Gives memory back in silence: a thread that takes expired records away when no request comes by to do it.

use std::sync::{PoisonError, Weak};
use std::time::Duration;

use super::Shards;
use crate::sync::{Condvar, Mutex, thread};

/// How often the janitor looks.
const ROUND: Duration = Duration::from_millis(250);
/// How many records it takes away under one lock, so that no request waits long for that lock.
const BATCH: usize = 32;

/// Tells the janitor that its store is gone.
#[derive(Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for one round; `true` when the store is gone.
    fn wait(&self) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, ROUND, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

/// Starts the thread. Where no thread can be had, records are still taken away by requests, only later.
pub(super) fn start(shards: &std::sync::Arc<Shards>, stop: &std::sync::Arc<Stop>) {
    let shards = std::sync::Arc::downgrade(shards);
    let stop = std::sync::Arc::clone(stop);
    let started = thread::Builder::new().name("idem-janitor".into()).spawn(move || {
        while !stop.wait() && round(&shards) {}
        #[cfg(feature = "metrics")]
        super::levels::publish();
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no janitor thread: the memory of expired records is given back only as requests come");
    }
}

/// One walk over all shards; `false` when the store is gone.
pub(super) fn round(shards: &Weak<Shards>) -> bool {
    let Some(shards) = shards.upgrade() else { return false };
    #[cfg(feature = "metrics")]
    super::levels::publish();
    let now = shards.now();
    for shard in &shards.all {
        if shard.soonest() <= now {
            while shard.reclaim(now, BATCH) == BATCH {
                // Between two batches requests get at the shard, and on a machine with few cores at the processor.
                thread::yield_now();
            }
        }
    }
    true
}

//! Keeping a claim while its handler runs.

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};

use super::Core;
use super::begin::{STORE_TIMEOUT, within};
use super::dyn_store::{BoxClaim, BoxFuture};
use crate::error::StoreError;
use crate::key::StorageKey;
use crate::lease::Lease;
use crate::remote::jitter;

/// How often a lease is renewed before it would expire.
const RENEWALS: u32 = 3;
/// The longest lease by which times are reckoned.
const MAX_LEASE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// The longest pause between two ticks of the thread.
const MAX_TICK: Duration = Duration::from_secs(10);

/// What it takes to keep a claim.
pub(super) struct Renewal {
    pub(super) lease: Duration,
    /// When the lease was asked for. The store may count from then on.
    asked_at: Instant,
    lost: watch::Sender<bool>,
}

impl Renewal {
    pub(super) fn new(lease: Duration, asked_at: Instant) -> Self {
        Self { lease, asked_at, lost: watch::Sender::new(false) }
    }

    /// Returns what the handler can learn about its claim.
    pub(super) fn watch(&self) -> Lease {
        Lease::watching(&self.lost)
    }

    /// Returns the lease, short enough to be added to any time.
    pub(super) fn bounded_lease(&self) -> Duration {
        self.lease.min(MAX_LEASE)
    }
}

/// Returns how long a reply to a renewal is awaited: long enough for a slow one, and short enough that a lost one does not cost the
/// lease.
pub(super) fn renewal_timeout(lease: Duration) -> Duration {
    STORE_TIMEOUT.min(lease / 2)
}

impl Core {
    /// Awaits `work`, and renews the lease of `claim` meanwhile. `work` has its own task, so that it may block its thread.
    pub(super) async fn renewing<R: Send + 'static>(
        &self,
        key: StorageKey,
        claim: &mut BoxClaim,
        renewal: &Renewal,
        work: BoxFuture<R>,
    ) -> R {
        let mut task = Self::spawn_untracked(work);
        let (lease, bounded) = (renewal.lease, renewal.bounded_lease());
        let mut ticks = self.ticks.watch(bounded);
        let mut due = renewal.asked_at + bounded / RENEWALS;
        loop {
            tokio::select! {
                biased;
                ended = &mut task => return result_of(ended).await,
                () = reached(due, &mut ticks), if !*renewal.lost.borrow() => {}
            }
            let sent_at = Instant::now();
            // The handler continues while the store replies, and whatever it replies: it has started.
            let renewed = tokio::select! {
                biased;
                ended = &mut task => return result_of(ended).await,
                renewed = within(renewal_timeout(lease), claim.renew(lease)) => renewed,
            };
            match renewed {
                Ok(()) => {
                    self.warn_of_round_trip(sent_at, bounded);
                    due = sent_at + bounded / RENEWALS;
                }
                Err(StoreError::Lost) => {
                    renewal.lost.send_replace(true);
                    tracing::error!(%key, "the lease was lost while the handler runs: it was not renewed in time, or the store lost the claim");
                }
                Err(error) => {
                    tracing::warn!(%key, %error, cause = error.cause(), "the lease could not be renewed; trying again");
                    due = sent_at + jitter(bounded / (2 * RENEWALS));
                }
            }
        }
    }

    /// Warns once if the store took more than a third of `lease` to reply to what was sent at `sent_at`. Such a claim is soon abandoned,
    /// although its handler runs.
    pub(super) fn warn_of_round_trip(&self, sent_at: Instant, lease: Duration) {
        let took = sent_at.elapsed();
        if took > lease / RENEWALS {
            self.warned_of_round_trip.call_once(|| {
                tracing::warn!(
                    ?took,
                    ?lease,
                    "the store took more than a third of the lease to reply; if this happens often, set a longer `lease`, or retries may \
                     be told that the outcome is unknown while the handler runs"
                );
            });
        }
    }
}

/// Returns what the task of a handler returned. Its panic continues here.
async fn result_of<R>(ended: Result<R, JoinError>) -> R {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        // The async runtime is shutting down, and drops this task as well.
        Err(Err(_)) => pending().await,
    }
}

async fn reached(due: Instant, ticks: &mut watch::Receiver<()>) {
    while Instant::now() < due {
        tokio::select! {
            () = sleep_until(due) => {}
            // The sender lives as long as the engine.
            _ = ticks.changed() => {}
        }
    }
}

/// A thread that wakes the tasks which renew leases, since the timers of an async runtime may stop: a thread that was waiting for
/// them runs the task that it has to wake, and while that task blocks it, no other thread may be waiting for timers.
pub(super) struct Ticks(Arc<Shared>);

struct Shared {
    ticks: watch::Sender<()>,
    is_running: Mutex<bool>,
}

impl Ticks {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared { ticks: watch::Sender::new(()), is_running: Mutex::new(false) }))
    }

    /// Returns what changes a few times in each lease. The thread runs while someone watches.
    fn watch(&self, lease: Duration) -> watch::Receiver<()> {
        let ticks = self.0.ticks.subscribe();
        let mut is_running = self.0.is_running.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_running {
            let (shared, pause) = (Arc::clone(&self.0), (lease / (2 * RENEWALS)).min(MAX_TICK));
            let started = thread::Builder::new().name("idem-leases".into()).spawn(move || shared.run(pause));
            if let Err(error) = &started {
                tracing::warn!(%error, "no thread for leases: a handler that blocks its thread may lose its lease");
            }
            *is_running = started.is_ok();
        }
        ticks
    }
}

impl Shared {
    fn run(&self, pause: Duration) {
        loop {
            thread::sleep(pause);
            let mut is_running = self.is_running.lock().unwrap_or_else(PoisonError::into_inner);
            if self.ticks.receiver_count() == 0 {
                *is_running = false;
                return;
            }
            drop(is_running);
            self.ticks.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_thread_ticks_several_times_in_a_lease() {
        // In real time, as the thread does. A lease that is long enough for a slow machine.
        let lease = Duration::from_secs(3);
        let mut ticks = Ticks::new().watch(lease);
        let ticked = tokio::time::timeout(lease, async {
            for _ in 0..2 {
                ticks.changed().await.expect("the thread runs");
            }
        });
        assert!(ticked.await.is_ok());
    }
}

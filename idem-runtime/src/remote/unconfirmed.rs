//! Unconfirmed claims: `begin` was sent, and no acknowledgement says whether it took effect. Their handlers have not run, so
//! they are released. Otherwise their keys would be in flight for a lease, and then their outcome unknown.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::jitter;
use crate::error::StoreError;

/// How many tries are under way at once, at most. So one process does not keep the store busy after an outage.
const MAX_TRIES: usize = 16;
/// The pause before the second try; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Not longer, since a drain waits for the next try.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The longest time for which a claim is looked for in vain, even if its lease is longer.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How a store releases a claim whose grant it could not confirm.
pub trait ReleaseUnconfirmed: Send + Sync + 'static {
    /// What the store needs to know of the claim: its key, and its owner. There may be many, so it should be small.
    type Claim: Send + Sync + 'static;

    /// How many tries may be under way at once in one runtime. There are never more than 16.
    const MAX_CONCURRENT_TRIES: usize;

    /// Tries once to release `claim`. Returns whether it is released for certain.
    ///
    /// If there is no such claim, it returns `false`: what was sent on another connection may still arrive.
    ///
    /// # Errors
    /// If the store has not replied.
    fn release(&self, claim: &Self::Claim) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// Follows up unconfirmed claims, each until it is released for certain: the store says so, or it has replied for one lease that there
/// is no such claim. The time in which the store does not reply does not count. The work ends with this value.
///
/// However many claims there are, the store is asked at a bounded pace, and by one try at a time until it replies. That holds for
/// each runtime that has had such claims: one may be kept and not driven any more, so each has its own task, and they share the claims.
pub struct UnconfirmedClaims<R: ReleaseUnconfirmed> {
    shared: Arc<Shared<R>>,
    tasks: Mutex<HashMap<runtime::Id, AbortOnDropHandle<()>>>,
}

struct Shared<R: ReleaseUnconfirmed> {
    store: R,
    queue: Mutex<BinaryHeap<Unconfirmed<R::Claim>>>,
    added: Notify,
    /// How many claims are followed up.
    count: Arc<watch::Sender<usize>>,
}

/// A claim that is followed up.
struct Unconfirmed<C> {
    claim: C,
    lease: Duration,
    due: Instant,
    pause: Duration,
    /// Since when the store has replied each time that there is no such claim.
    absent_since: Option<Instant>,
    _counted: Counted,
}

/// A try that is under way. If it ends with its runtime, the claim is followed up in the next one.
struct Try<R: ReleaseUnconfirmed> {
    shared: Arc<Shared<R>>,
    /// `None` once the reply was seen.
    claim: Option<Unconfirmed<R::Claim>>,
}

impl<R: ReleaseUnconfirmed> Try<R> {
    async fn release(&self) -> Result<bool, StoreError> {
        match &self.claim {
            Some(Unconfirmed { claim, .. }) => self.shared.store.release(claim).await,
            None => Ok(true),
        }
    }
}

impl<R: ReleaseUnconfirmed> Drop for Try<R> {
    fn drop(&mut self) {
        // One that panicked is not repeated.
        if let Some(claim) = self.claim.take().filter(|_| !thread::panicking()) {
            self.shared.put(claim);
            self.shared.added.notify_waiters();
        }
    }
}

/// What is next in the queue.
enum NextTry<C> {
    Due(Unconfirmed<C>),
    At(Instant),
    Nothing,
}

impl<R: ReleaseUnconfirmed> UnconfirmedClaims<R> {
    /// Makes a list of unconfirmed claims that is empty.
    pub fn new(store: R) -> Self {
        let shared = Shared { store, queue: Mutex::default(), added: Notify::new(), count: Arc::default() };
        Self { shared: Arc::new(shared), tasks: Mutex::default() }
    }

    /// Returns a guard for a `begin` that is about to be sent. If it is dropped while the claim is
    /// [in doubt](UnconfirmedGuard::in_doubt), the claim is followed up in a task of the current runtime, or of the one in which the
    /// next claim is, or a [drain](Self::drained).
    pub fn guard(&self, claim: R::Claim, lease: Duration) -> UnconfirmedGuard<'_, R> {
        UnconfirmedGuard { claims: self, claim: Some(claim), lease, in_doubt: InDoubt::default() }
    }

    /// Resolves when no claim is being followed up.
    ///
    /// Cancel safe: dropping the future only stops the waiting.
    pub async fn drained(&self) {
        let mut count = self.shared.count.subscribe();
        if *count.borrow_and_update() > 0 {
            self.ensure_running();
        }
        // The sender lives as long as this value does, so there is no error.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    fn ensure_running(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|_, task| !task.is_finished());
        let run = || AbortOnDropHandle::new(runtime.spawn(Arc::clone(&self.shared).run()));
        tasks.entry(runtime.id()).or_insert_with(run);
    }

    fn follow_up(&self, claim: R::Claim, lease: Duration) {
        self.shared.put(Unconfirmed {
            claim,
            lease: lease.min(MAX_TIME),
            due: Instant::now(),
            pause: FIRST_PAUSE,
            absent_since: None,
            _counted: Counted::new(&self.shared.count),
        });
        self.shared.added.notify_waiters();
        self.ensure_running();
    }
}

impl<R: ReleaseUnconfirmed> fmt::Debug for UnconfirmedClaims<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnconfirmedClaims").field("count", &*self.shared.count.borrow()).finish_non_exhaustive()
    }
}

impl<R: ReleaseUnconfirmed> Shared<R> {
    fn put(&self, claim: Unconfirmed<R::Claim>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    }

    fn next(&self) -> NextTry<R::Claim> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.peek().map(|claim| claim.due) {
            Some(due) if due > Instant::now() => NextTry::At(due),
            Some(_) => queue.pop().map_or(NextTry::Nothing, NextTry::Due),
            None => {
                queue.shrink_to_fit();
                NextTry::Nothing
            }
        }
    }

    async fn run(self: Arc<Self>) {
        let mut tries = JoinSet::new();
        // While the store does not reply: the pause, and its end.
        let mut outage: Option<(Duration, Instant)> = None;
        loop {
            // From now on it misses none that is added.
            let added = self.added.notified();
            let max_tries = if outage.is_some() { 1 } else { R::MAX_CONCURRENT_TRIES.clamp(1, MAX_TRIES) };
            let mut next = outage.map(|(_, end)| end).filter(|end| *end > Instant::now());
            while next.is_none() && tries.len() < max_tries {
                match self.next() {
                    NextTry::Due(claim) => {
                        let this = Try { shared: Arc::clone(&self), claim: Some(claim) };
                        tries.spawn(async move { (this.release().await, this) });
                    }
                    NextTry::At(due) => next = Some(due),
                    NextTry::Nothing => break,
                }
            }
            let tried = tokio::select! {
                Some(tried) = tries.join_next() => tried,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => continue,
                () = added => continue,
            };
            let Ok((released, mut tried)) = tried else { continue };
            let Some(claim) = tried.claim.take() else { continue };
            let now = Instant::now();
            match released {
                Ok(true) => outage = None,
                Ok(false) => {
                    outage = None;
                    self.put_back(claim, now);
                }
                Err(_) => {
                    // Several tries may fail in one outage.
                    let (pause, end) = match outage {
                        Some((pause, end)) if end > now => (pause, end),
                        Some((pause, _)) => later((pause * 2).min(MAX_PAUSE), now),
                        None => later(FIRST_PAUSE, now),
                    };
                    outage = Some((pause, end));
                    self.put(Unconfirmed { due: end, absent_since: None, ..claim });
                }
            }
        }
    }

    /// The store has replied that there is no such claim.
    fn put_back(&self, claim: Unconfirmed<R::Claim>, now: Instant) {
        let absent_since = claim.absent_since.unwrap_or(now);
        if now.duration_since(absent_since) < claim.lease {
            let pause = (claim.pause * 2).min(MAX_PAUSE);
            let (_, due) = later(claim.pause, now);
            self.put(Unconfirmed { due, pause, absent_since: Some(absent_since), ..claim });
        }
    }
}

/// Returns the pause, and when it ends.
fn later(pause: Duration, now: Instant) -> (Duration, Instant) {
    (pause, now + jitter(pause))
}

/// The one that is due first is the greatest.
impl<C> Ord for Unconfirmed<C> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.due.cmp(&self.due)
    }
}

impl<C> PartialOrd for Unconfirmed<C> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<C> PartialEq for Unconfirmed<C> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl<C> Eq for Unconfirmed<C> {}

/// One claim that is being followed up, until it is dropped.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    fn new(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Guards one `begin`: see [`UnconfirmedClaims::guard`].
pub struct UnconfirmedGuard<'a, R: ReleaseUnconfirmed> {
    claims: &'a UnconfirmedClaims<R>,
    /// `None` once the outcome is known.
    claim: Option<R::Claim>,
    lease: Duration,
    in_doubt: InDoubt,
}

impl<R: ReleaseUnconfirmed> UnconfirmedGuard<'_, R> {
    /// Returns whether the claim may have been granted without an acknowledgement. The code that sends the claim keeps it right.
    pub fn in_doubt(&self) -> &InDoubt {
        &self.in_doubt
    }

    /// The outcome is known: the claim was granted, or it was not and never will be.
    pub fn confirm(mut self) {
        self.claim = None;
    }
}

impl<R: ReleaseUnconfirmed> Drop for UnconfirmedGuard<'_, R> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take().filter(|_| self.in_doubt.get()) {
            self.claims.follow_up(claim, self.lease);
        }
    }
}

impl<R: ReleaseUnconfirmed> fmt::Debug for UnconfirmedGuard<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnconfirmedGuard").field("in_doubt", &self.in_doubt).finish_non_exhaustive()
    }
}

/// Whether a step may have taken effect, or may still do so, although no acknowledgement says that it did.
///
/// It is right at every moment, so that it is also right if the future that sends the step is dropped. Initially `false`.
#[derive(Debug, Default)]
pub struct InDoubt(AtomicBool);

impl InDoubt {
    /// Returns whether the step is in doubt.
    pub fn get(&self) -> bool {
        self.0.load(atomic::Ordering::SeqCst)
    }

    /// Sets whether the step is in doubt, and returns whether it was.
    pub fn set(&self, in_doubt: bool) -> bool {
        self.0.swap(in_doubt, atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;

//! Unconfirmed claims: `begin` was sent, and no acknowledgement says whether it took effect. Their handlers have not run, so
//! they are released. Otherwise their keys would be in flight for a lease, and then their outcome unknown.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// How many claims are followed up at once. Beyond that, their leases end them.
const MAX_CLAIMS: usize = 1024;
/// The pause before the second try; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Not longer, since a drain waits for the next try.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// For how long one claim is followed up at most, even if its lease is longer.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How a store releases a claim whose grant it could not confirm.
pub trait ReleaseUnconfirmed: Send + Sync + 'static {
    /// What the store needs to know of the claim: its key, and its owner.
    type Claim: Send + Sync + 'static;

    /// How many tries may be under way at once.
    const MAX_CONCURRENT_TRIES: usize;

    /// Tries once to release `claim`. Returns whether it is released for certain.
    ///
    /// If there is no such claim, it returns `false`: what was sent on another connection may still arrive.
    fn release(&self, claim: &Self::Claim) -> impl Future<Output = bool> + Send;
}

/// Follows up unconfirmed claims, each until it is released or its lease has expired. The work ends with this value.
pub struct UnconfirmedClaims<R: ReleaseUnconfirmed> {
    releaser: Arc<Releaser<R>>,
    tasks: Mutex<JoinSet<()>>,
    /// How many claims are being followed up.
    count: Arc<watch::Sender<usize>>,
}

struct Releaser<R> {
    store: R,
    tries: Semaphore,
}

impl<R: ReleaseUnconfirmed> UnconfirmedClaims<R> {
    /// Nothing to follow up yet.
    pub fn new(store: R) -> Self {
        let tries = Semaphore::new(R::MAX_CONCURRENT_TRIES.min(Semaphore::MAX_PERMITS));
        Self { releaser: Arc::new(Releaser { store, tries }), tasks: Mutex::default(), count: Arc::default() }
    }

    /// Returns a guard for a `begin` that is about to be sent. If it is dropped while the claim is
    /// [in doubt](UnconfirmedGuard::in_doubt), the claim is followed up for `lease`, in a task of the current runtime.
    pub fn guard(&self, claim: R::Claim, lease: Duration) -> UnconfirmedGuard<'_, R> {
        UnconfirmedGuard { claims: self, claim: Some(claim), lease, in_doubt: InDoubt::default() }
    }

    /// Resolves when no claim is being followed up.
    ///
    /// Cancel safe: dropping the future only stops the waiting.
    pub async fn drained(&self) {
        // The sender lives as long as this value does, so there is no error.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    fn follow_up(&self, claim: R::Claim, lease: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_CLAIMS {
            let counted = Counted::new(&self.count);
            let releaser = Arc::clone(&self.releaser);
            let release = async move {
                releaser.release(&claim, lease).await;
                drop(counted);
            };
            tasks.spawn_on(release, &runtime);
        }
    }
}

impl<R: ReleaseUnconfirmed> fmt::Debug for UnconfirmedClaims<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnconfirmedClaims").field("count", &*self.count.borrow()).finish_non_exhaustive()
    }
}

impl<R: ReleaseUnconfirmed> Releaser<R> {
    async fn release(&self, claim: &R::Claim, lease: Duration) {
        let end = Instant::now() + lease.min(MAX_TIME);
        let mut pause = FIRST_PAUSE;
        while Instant::now() < end {
            let Ok(Ok(permit)) = timeout_at(end, self.tries.acquire()).await else { return };
            let released = self.store.release(claim).await;
            drop(permit);
            if released {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

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
        self.0.load(Ordering::SeqCst)
    }

    /// Sets whether the step is in doubt, and returns whether it was.
    pub fn set(&self, in_doubt: bool) -> bool {
        self.0.swap(in_doubt, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    /// Releases a claim at the try with this number.
    struct AfterTries {
        needed: usize,
        tries: Arc<AtomicUsize>,
    }

    impl ReleaseUnconfirmed for AfterTries {
        type Claim = ();

        const MAX_CONCURRENT_TRIES: usize = 1;

        async fn release(&self, (): &()) -> bool {
            self.tries.fetch_add(1, Ordering::SeqCst) + 1 >= self.needed
        }
    }

    fn claims(needed: usize) -> (UnconfirmedClaims<AfterTries>, Arc<AtomicUsize>) {
        let tries = Arc::new(AtomicUsize::new(0));
        (UnconfirmedClaims::new(AfterTries { needed, tries: Arc::clone(&tries) }), tries)
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_in_doubt_is_tried_until_it_is_released_and_a_drain_waits_for_that() {
        let (claims, tries) = claims(4);
        let guard = claims.guard((), LEASE);
        guard.in_doubt().set(true);
        drop(guard);
        claims.drained().await;
        assert_eq!(tries.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_was_confirmed_or_never_sent_is_left_alone() {
        let (claims, tries) = claims(1);
        drop(claims.guard((), LEASE));
        let guard = claims.guard((), LEASE);
        guard.in_doubt().set(true);
        guard.confirm();
        claims.drained().await;
        sleep(LEASE).await;
        assert_eq!(tries.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_never_arrives_is_given_up_when_its_lease_has_expired() {
        let (claims, tries) = claims(usize::MAX);
        let guard = claims.guard((), LEASE);
        guard.in_doubt().set(true);
        let start = Instant::now();
        drop(guard);
        claims.drained().await;
        assert!(start.elapsed() >= LEASE && start.elapsed() <= LEASE + MAX_PAUSE, "{:?}", start.elapsed());
        assert!(tries.load(Ordering::SeqCst) >= 30, "it is tried at least once in {MAX_PAUSE:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_ends_with_its_owner() {
        let (claims, tries) = claims(usize::MAX);
        let guard = claims.guard((), LEASE);
        guard.in_doubt().set(true);
        drop(guard);
        tokio::task::yield_now().await;
        drop(claims);
        let before = tries.load(Ordering::SeqCst);
        sleep(LEASE).await;
        assert_eq!(tries.load(Ordering::SeqCst), before);
    }
}

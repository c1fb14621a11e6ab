use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use tokio::sync::mpsc;
use tokio::time::{advance, sleep};

use super::*;
use crate::test_support::wait::within;

const LEASE: Duration = Duration::from_secs(30);

/// Replies at once what this function returns.
struct Replies<F>(F);

impl<F: Fn(usize) -> Result<bool, StoreError> + Send + Sync + 'static> ReleaseUnconfirmed for Replies<F> {
    type Claim = usize;

    const MAX_CONCURRENT_TRIES: usize = 1;

    async fn release(&self, claim: &usize) -> Result<bool, StoreError> {
        self.0(*claim)
    }
}

/// Each claim is released at the try with this number.
fn claims(needed: usize) -> (UnconfirmedClaims<impl ReleaseUnconfirmed<Claim = usize>>, Arc<AtomicUsize>) {
    let tries = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&tries);
    (UnconfirmedClaims::new(Replies(move |_| Ok(counted.fetch_add(1, SeqCst) + 1 >= needed))), tries)
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn leave_in_doubt<R: ReleaseUnconfirmed>(claims: &UnconfirmedClaims<R>, claim: R::Claim) {
    claims.guard(claim, LEASE).in_doubt().set(true);
}

#[tokio::test(start_paused = true)]
async fn a_claim_in_doubt_is_tried_until_it_is_released_and_a_drain_waits_for_that() {
    let (claims, tries) = claims(4);
    leave_in_doubt(&claims, 0);
    claims.drained().await;
    assert_eq!(tries.load(SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_confirmed_or_never_sent_is_left_alone() {
    let (claims, tries) = claims(1);
    drop(claims.guard(0, LEASE));
    let guard = claims.guard(0, LEASE);
    guard.in_doubt().set(true);
    guard.confirm();
    claims.drained().await;
    sleep(LEASE).await;
    assert_eq!(tries.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_never_arrives_is_given_up_when_its_lease_has_expired() {
    let (claims, tries) = claims(usize::MAX);
    let start = Instant::now();
    leave_in_doubt(&claims, 0);
    claims.drained().await;
    assert!(start.elapsed() >= LEASE && start.elapsed() <= LEASE + MAX_PAUSE, "{:?}", start.elapsed());
    // Each pause is at most `MAX_PAUSE`, and all but the first ones are at least half of it.
    assert!((30..=70).contains(&tries.load(SeqCst)), "{tries:?} tries");
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_a_longer_lease_is_given_up_after_a_day() {
    let (claims, _) = claims(usize::MAX);
    let (start, day) = (Instant::now(), Duration::from_secs(86_400));
    claims.guard(0, Duration::MAX).in_doubt().set(true);
    sleep(Duration::from_millis(1)).await;
    advance(day - MAX_PAUSE).await;
    claims.drained().await;
    assert!(start.elapsed() >= day && start.elapsed() <= day + MAX_PAUSE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_time_in_which_the_store_does_not_reply_does_not_count() {
    let start = Instant::now();
    let replies = move |_| match start.elapsed() {
        time if time > LEASE / 2 && time < LEASE * 2 => Err(StoreError::unavailable("no reply")),
        _ => Ok(false),
    };
    let claims = UnconfirmedClaims::new(Replies(replies));
    leave_in_doubt(&claims, 0);
    claims.drained().await;
    assert!(start.elapsed() >= LEASE * 3, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_claim_is_tried_again_before_each_that_is_due_was_tried() {
    const CLAIMS: usize = 10;
    for fails in [false, true] {
        let (tried, mut tries) = mpsc::unbounded_channel();
        let claims = UnconfirmedClaims::new(Replies(move |claim| {
            tried.send(claim).unwrap();
            if fails { Err(StoreError::unavailable("not this one")) } else { Ok(false) }
        }));
        (0..CLAIMS).for_each(|claim| leave_in_doubt(&claims, claim));
        let mut first = HashSet::new();
        for _ in 0..CLAIMS {
            first.extend(within("a try", tries.recv()).await);
        }
        assert_eq!(first.len(), CLAIMS, "fails: {fails}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_work_ends_with_its_owner() {
    let (claims, tries) = claims(usize::MAX);
    leave_in_doubt(&claims, 0);
    tokio::task::yield_now().await;
    drop(claims);
    let before = tries.load(SeqCst);
    sleep(LEASE).await;
    assert_eq!(tries.load(SeqCst), before);
}

#[test]
fn a_claim_that_is_in_doubt_outside_a_runtime_is_released_later() {
    let (claims, tries) = claims(1);
    leave_in_doubt(&claims, 0);
    runtime().block_on(async {
        leave_in_doubt(&claims, 0);
        claims.drained().await;
    });
    assert_eq!(tries.load(SeqCst), 2);
}

#[test]
fn a_drain_follows_up_a_claim_whose_runtime_has_ended() {
    let (claims, tries) = claims(1);
    runtime().block_on(async { leave_in_doubt(&claims, 0) });
    runtime().block_on(within("the drain", claims.drained()));
    assert_eq!(tries.load(SeqCst), 1);
    assert_eq!(claims.tasks.lock().unwrap().len(), 1, "nothing is left of a runtime that has ended");
}

#[test]
fn a_runtime_that_is_not_driven_keeps_no_claim_of_another_one() {
    let (claims, tries) = claims(1);
    let (first, second) = (runtime(), runtime());
    first.block_on(async { leave_in_doubt(&claims, 0) });
    second.block_on(async {
        leave_in_doubt(&claims, 1);
        within("the drain", claims.drained()).await;
    });
    assert_eq!(tries.load(SeqCst), 2);
    first.block_on(async {
        leave_in_doubt(&claims, 2);
        within("the drain", claims.drained()).await;
    });
}

#[test]
fn a_claim_is_tried_in_its_runtime_although_those_of_others_wait() {
    let (claims, tries) = claims(1);
    let (first, second) = (runtime(), runtime());
    let follow_up = |runtime: &runtime::Runtime| {
        runtime.block_on(async {
            leave_in_doubt(&claims, 0);
            within("the drain", claims.drained()).await;
        });
    };
    follow_up(&first);
    follow_up(&second);
    // Now the task of the second has waited for longer, and nothing drives it.
    first.block_on(tokio::task::yield_now());
    follow_up(&first);
    assert_eq!(tries.load(SeqCst), 3);
}

/// Replies only to the second try.
struct SilentAtFirst(Arc<AtomicUsize>);

impl ReleaseUnconfirmed for SilentAtFirst {
    type Claim = usize;

    const MAX_CONCURRENT_TRIES: usize = 1;

    async fn release(&self, _: &usize) -> Result<bool, StoreError> {
        if self.0.fetch_add(1, SeqCst) == 0 {
            std::future::pending::<()>().await;
        }
        Ok(true)
    }
}

#[test]
fn a_drain_follows_up_a_claim_whose_runtime_has_ended_during_a_try() {
    let tries = Arc::<AtomicUsize>::default();
    let claims = UnconfirmedClaims::new(SilentAtFirst(Arc::clone(&tries)));
    runtime().block_on(async {
        leave_in_doubt(&claims, 0);
        while tries.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    });
    runtime().block_on(within("the drain", claims.drained()));
    assert_eq!(tries.load(SeqCst), 2);
}

#[test]
fn a_try_that_ends_with_its_runtime_is_repeated_in_one_that_waits() {
    let tries = Arc::<AtomicUsize>::default();
    let claims = UnconfirmedClaims::new(SilentAtFirst(Arc::clone(&tries)));
    let (first, second) = (runtime(), runtime());
    first.block_on(async {
        leave_in_doubt(&claims, 0);
        while tries.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    });
    // Its task finds nothing to do, and waits.
    second.block_on(async {
        assert!(tokio::time::timeout(Duration::from_millis(1), claims.drained()).await.is_err());
    });
    drop(first);
    second.block_on(within("the drain", claims.drained()));
    assert_eq!(tries.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_try_that_panicked_is_not_repeated() {
    let tries = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&tries);
    let claims = UnconfirmedClaims::new(Replies(move |_| {
        counted.fetch_add(1, SeqCst);
        panic!("a mistake in the store")
    }));
    leave_in_doubt(&claims, 0);
    claims.drained().await;
    assert_eq!(tries.load(SeqCst), 1);
}

/// A server that does not reply before `end`, and then holds `held`.
struct Stalled {
    end: Instant,
    held: Arc<Mutex<HashSet<usize>>>,
    tries: Arc<AtomicUsize>,
    at_once: AtomicUsize,
}

impl ReleaseUnconfirmed for Stalled {
    type Claim = usize;

    const MAX_CONCURRENT_TRIES: usize = usize::MAX;

    async fn release(&self, claim: &usize) -> Result<bool, StoreError> {
        assert!(self.at_once.fetch_add(1, SeqCst) < MAX_TRIES);
        self.tries.fetch_add(1, SeqCst);
        sleep(Duration::from_millis(1)).await;
        self.at_once.fetch_sub(1, SeqCst);
        if Instant::now() < self.end {
            return Err(StoreError::unavailable("no reply"));
        }
        Ok(self.held.lock().unwrap().remove(claim))
    }
}

#[tokio::test(start_paused = true)]
async fn tries_that_fail_together_are_one_outage_with_one_pause() {
    let start = Instant::now();
    let claims = UnconfirmedClaims::new(Stalled {
        end: start + FIRST_PAUSE / 5,
        held: Arc::new(Mutex::new((0..MAX_TRIES).collect())),
        tries: Arc::default(),
        at_once: AtomicUsize::new(0),
    });
    (0..MAX_TRIES).for_each(|claim| leave_in_doubt(&claims, claim));
    claims.drained().await;
    assert!(start.elapsed() < FIRST_PAUSE * 2, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn every_claim_is_released_after_a_stall_longer_than_a_lease_and_at_a_bounded_pace() {
    const CLAIMS: usize = 5_000;
    let (held, tries) = (Arc::new(Mutex::new((0..CLAIMS).collect())), Arc::<AtomicUsize>::default());
    let claims = UnconfirmedClaims::new(Stalled {
        end: Instant::now() + LEASE * 2,
        held: Arc::clone(&held),
        tries: Arc::clone(&tries),
        at_once: AtomicUsize::new(0),
    });
    (0..CLAIMS).for_each(|claim| leave_in_doubt(&claims, claim));
    sleep(LEASE * 2 - Duration::from_millis(1)).await;
    let in_vain = tries.load(SeqCst);
    assert!(in_vain < 200, "{in_vain} tries while the server did not reply");
    claims.drained().await;
    assert!(held.lock().unwrap().is_empty());
    assert_eq!(claims.shared.queue.lock().unwrap().capacity(), 0, "the memory is freed");
}

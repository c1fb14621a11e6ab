//! The requests in this process that wait for claims to end. Of those that wait for one claim, one asks the store.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::key::StorageKey;
use crate::remote::jitter;

/// The pause before the store is asked again: short at first, for handlers that end soon.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The keys whose claims are waited for. One of the requests that wait for a key asks the store now and then, and at once if it is
/// told [to ask](Self::ask). A message that a claim has ended [wakes](Self::wake) all of them. Nothing depends on a message: it may
/// be lost.
///
/// No one depends on one that is not polled, such as a request whose runtime is blocked: if the one that asks has not done so for too
/// long, another one asks.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::StorageKey;
/// use idem_runtime::remote::Waiters;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (waiters, key) = (Waiters::default(), StorageKey::from_bytes([7; 32]));
/// let mut leases = [Some(Duration::from_secs(30)), None].into_iter();
/// // .. ask the store how long the lease of the claim still runs; it is gone the second time ..
/// waiters.ended(&key, Duration::from_secs(5), || std::future::ready(leases.next().flatten())).await;
/// assert!(waiters.is_empty());
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Waiters {
    keys: Mutex<Keys>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Keys {
    awaited: HashMap<StorageKey, Awaited>,
    /// The keys that someone has begun, or ceased, to wait for since [`Changes`] were last read. `None` if no one reads them.
    changes: Option<HashSet<StorageKey>>,
}

/// The keys that someone begins, or ceases, to wait for. Made by [`Waiters::changes`]. Without it, no changes are kept.
///
/// ```
/// use idem_runtime::remote::Waiters;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let waiters = Waiters::default();
/// let mut changes = waiters.changes();
/// let listen = async {
///     loop {
///         for (key, is_awaited) in changes.next().await {
///             // .. subscribe to the messages of this key, or no longer ..
///             # let _ = (key, is_awaited);
///         }
///     }
/// };
/// # drop(listen);
/// # }
/// ```
#[derive(Debug)]
pub struct Changes<'a>(&'a Waiters);

/// A key that is waited for, until its claim may have ended.
#[derive(Debug, Default)]
struct Awaited {
    /// Those who wait know by them for which claim they do.
    signals: Arc<Signals>,
    waiters: usize,
    /// How often another waiter has begun to ask.
    turn: u64,
    /// When the one whose turn it is has begun to ask. `None` if it is no one's.
    asked: Option<Instant>,
}

#[derive(Debug, Default)]
struct Signals {
    /// Something has changed for all who wait.
    all: Notify,
    /// The store is to be asked now.
    ask: Notify,
}

/// A request that waits, until this is dropped.
struct Waiter<'a> {
    waiters: &'a Waiters,
    key: StorageKey,
    signals: Arc<Signals>,
    /// The turn that it took last.
    turn: Option<u64>,
}

/// What a waiter does next.
enum WaiterStep {
    /// The claim may have ended.
    Return,
    Ask,
    /// Another one asks. If it does not for this time, it is not polled.
    Wait(Duration),
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_change(&self, keys: &mut Keys, key: &StorageKey) {
        if let Some(changes) = &mut keys.changes {
            changes.insert(*key);
            self.changed.notify_one();
        }
    }

    fn remove(&self, keys: &mut Keys, key: &StorageKey) -> Option<Awaited> {
        let removed = keys.awaited.remove(key)?;
        self.note_change(keys, key);
        Some(removed)
    }

    /// Waits until the claim under `key` may have ended. If no other request asks the store, this one does: `ask` takes no longer than
    /// `longest`, and returns for how long the claim's lease still runs, or `None` if there is no claim.
    ///
    /// Cancel safe: if the one that asks is dropped, another one asks.
    ///
    /// # Panics
    /// Outside a Tokio runtime with a timer.
    pub async fn ended<F>(&self, key: &StorageKey, longest: Duration, mut ask: impl FnMut() -> F)
    where
        F: Future<Output = Option<Duration>>,
    {
        let mut waiter = self.join(key);
        let signals = Arc::clone(&waiter.signals);
        let mut pause = FIRST_PAUSE;
        loop {
            // From now on it misses no change.
            let mut changed = pin!(signals.all.notified());
            changed.as_mut().enable();
            match waiter.next(longest.saturating_add(2 * MAX_PAUSE)) {
                WaiterStep::Return => return,
                WaiterStep::Wait(most) => drop(timeout(most, changed).await),
                WaiterStep::Ask => {
                    let Some(left) = ask().await else { return waiter.end() };
                    tokio::select! {
                        () = sleep(jitter(pause).min(left)) => pause = (pause * 2).min(MAX_PAUSE),
                        () = signals.ask.notified() => {}
                        () = changed => {}
                    }
                }
            }
        }
    }

    fn join(&self, key: &StorageKey) -> Waiter<'_> {
        let mut keys = self.lock();
        let awaited = keys.awaited.entry(*key).or_default();
        awaited.waiters += 1;
        let (is_first, signals) = (awaited.waiters == 1, Arc::clone(&awaited.signals));
        if is_first {
            self.note_change(&mut keys, key);
        }
        Waiter { waiters: self, key: *key, signals, turn: None }
    }

    /// Wakes those who wait for the claim under `key`: it may have ended.
    pub fn wake(&self, key: &StorageKey) {
        if let Some(awaited) = self.remove(&mut self.lock(), key) {
            awaited.signals.all.notify_waiters();
        }
    }

    /// Has the store be asked at once about the claim under `key`: a message may have been missed.
    pub fn ask(&self, key: &StorageKey) {
        if let Some(awaited) = self.lock().awaited.get(key) {
            awaited.signals.ask.notify_one();
        }
    }

    /// Has the store be asked at once about each claim.
    pub fn ask_all(&self) {
        for awaited in self.lock().awaited.values() {
            awaited.signals.ask.notify_one();
        }
    }

    /// Returns whether no one waits.
    pub fn is_empty(&self) -> bool {
        self.lock().awaited.is_empty()
    }

    /// Returns the changes from now on, for one [listener](crate::remote::Listener) at a time. The first of them are the keys that are
    /// waited for now.
    pub fn changes(&self) -> Changes<'_> {
        let mut keys = self.lock();
        keys.changes = Some(keys.awaited.keys().copied().collect());
        self.changed.notify_one();
        Changes(self)
    }
}

impl Changes<'_> {
    /// Waits for a change, and returns each key that has changed since the last call, in no order, with whether someone waits for it.
    ///
    /// Cancel safe: a change that was not returned is returned the next time.
    pub async fn next(&mut self) -> Vec<(StorageKey, bool)> {
        loop {
            self.0.changed.notified().await;
            let Keys { awaited, changes } = &mut *self.0.lock();
            let changed: Vec<_> =
                changes.iter_mut().flat_map(HashSet::drain).map(|key| (key, awaited.contains_key(&key))).collect();
            if !changed.is_empty() {
                return changed;
            }
        }
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        self.0.lock().changes = None;
    }
}

impl Waiter<'_> {
    /// Finds what the request waits for, unless the claim may have ended.
    fn awaited<'k>(&self, keys: &'k mut Keys) -> Option<&'k mut Awaited> {
        keys.awaited.get_mut(&self.key).filter(|awaited| Arc::ptr_eq(&awaited.signals, &self.signals))
    }

    /// Takes the turn if it is no one's, or of one that has asked the last time `longest` ago.
    fn next(&mut self, longest: Duration) -> WaiterStep {
        let mut keys = self.waiters.lock();
        let Some(awaited) = self.awaited(&mut keys) else { return WaiterStep::Return };
        if self.turn != Some(awaited.turn) {
            let left = awaited.asked.map(|asked| longest.saturating_sub(asked.elapsed())).unwrap_or_default();
            if !left.is_zero() {
                return WaiterStep::Wait(left);
            }
            awaited.turn += 1;
            self.turn = Some(awaited.turn);
        }
        awaited.asked = Some(Instant::now());
        WaiterStep::Ask
    }

    /// Tells all others that the claim may have ended.
    fn end(self) {
        let mut keys = self.waiters.lock();
        if self.awaited(&mut keys).is_some() {
            self.waiters.remove(&mut keys, &self.key);
            self.signals.all.notify_waiters();
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut keys = self.waiters.lock();
        let Some(awaited) = self.awaited(&mut keys) else { return };
        awaited.waiters -= 1;
        if awaited.waiters == 0 {
            self.waiters.remove(&mut keys, &self.key);
        } else if self.turn == Some(awaited.turn) {
            awaited.asked = None;
            self.signals.all.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{Future, pending, ready};
    use std::task::{Context, Poll, Waker};

    use tokio::time::advance;

    use super::*;

    const ONE: StorageKey = StorageKey::from_bytes([1; 32]);
    const OTHER: StorageKey = StorageKey::from_bytes([2; 32]);
    const LONGEST: Duration = Duration::from_secs(5);
    const LEASE: Duration = Duration::from_secs(60);

    type Wait<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

    /// A claim, and how often each of two waiters has asked for it.
    #[derive(Default)]
    struct Claim {
        has_ended: Cell<bool>,
        asked: [Cell<usize>; 2],
    }

    impl Claim {
        fn wait<'a>(&'a self, waiters: &'a Waiters, who: usize) -> Wait<'a> {
            Box::pin(waiters.ended(&ONE, LONGEST, move || {
                self.asked[who].set(self.asked[who].get() + 1);
                ready((!self.has_ended.get()).then_some(LEASE))
            }))
        }

        fn asked(&self) -> [usize; 2] {
            self.asked.each_ref().map(Cell::take)
        }
    }

    /// Polls once, and returns whether the wait has ended.
    fn has_ended(wait: &mut Wait<'_>) -> bool {
        wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_for_all_and_pauses_for_longer_each_time() {
        let (waiters, claim) = (Waiters::default(), Claim::default());
        let (mut first, mut second) = (claim.wait(&waiters, 0), claim.wait(&waiters, 1));
        for _ in 0..4000 {
            assert!(!has_ended(&mut first) && !has_ended(&mut second));
            advance(Duration::from_millis(1)).await;
        }
        let [asked, none] = claim.asked();
        assert!((8..24).contains(&asked), "{asked} times in 4 s");
        assert_eq!(none, 0);
        claim.has_ended.set(true);
        advance(MAX_PAUSE).await;
        assert!(!has_ended(&mut second), "the first one asks");
        assert!(has_ended(&mut first) && has_ended(&mut second));
        assert_eq!(claim.asked(), [1, 0], "and tells the second one");
        assert!(waiters.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn if_the_one_that_asks_leaves_another_one_asks() {
        let (waiters, claim) = (Waiters::default(), Claim::default());
        let (mut first, mut second) = (claim.wait(&waiters, 0), claim.wait(&waiters, 1));
        assert!(!has_ended(&mut first) && !has_ended(&mut second));
        assert_eq!(claim.asked(), [1, 0]);
        drop(first);
        assert!(!has_ended(&mut second));
        assert_eq!(claim.asked(), [0, 1]);
        drop(second);
        assert!(waiters.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_not_polled_holds_up_no_one_for_long() {
        let (waiters, claim) = (Waiters::default(), Claim::default());
        let (mut first, mut second) = (claim.wait(&waiters, 0), claim.wait(&waiters, 1));
        assert!(!has_ended(&mut first));
        advance(LONGEST).await;
        assert!(!has_ended(&mut second));
        assert_eq!(claim.asked(), [1, 0], "the first one may still ask");
        advance(2 * MAX_PAUSE).await;
        assert!(!has_ended(&mut second));
        assert_eq!(claim.asked(), [0, 1]);
        assert!(!has_ended(&mut first));
        assert_eq!(claim.asked(), [0, 0], "it has lost its turn");
        drop(first);
        advance(MAX_PAUSE).await;
        assert!(!has_ended(&mut second));
        assert_eq!(claim.asked(), [0, 1], "the second one has kept it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ends_sooner_shortens_the_pause() {
        let (waiters, asked) = (Waiters::default(), Cell::new(0));
        let mut wait: Wait<'_> = Box::pin(waiters.ended(&ONE, LONGEST, || {
            asked.set(asked.get() + 1);
            ready(Some(Duration::from_millis(1)))
        }));
        for _ in 0..10 {
            assert!(!has_ended(&mut wait));
            advance(Duration::from_millis(1)).await;
        }
        assert_eq!(asked.get(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_wakes_all_or_has_the_store_be_asked_at_once() {
        let (waiters, claim) = (Waiters::default(), Claim::default());
        let (mut first, mut second) = (claim.wait(&waiters, 0), claim.wait(&waiters, 1));
        for ask in [|waiters: &Waiters| waiters.ask(&ONE), Waiters::ask_all] {
            assert!(!has_ended(&mut first) && !has_ended(&mut second));
            let _ = claim.asked();
            waiters.ask(&OTHER);
            waiters.wake(&OTHER);
            assert!(!has_ended(&mut first) && !has_ended(&mut second));
            assert_eq!(claim.asked(), [0, 0]);
            ask(&waiters);
            assert!(!has_ended(&mut first) && !has_ended(&mut second));
            assert_eq!(claim.asked(), [1, 0]);
        }
        waiters.wake(&ONE);
        let mut next = claim.wait(&waiters, 1);
        assert!(!has_ended(&mut next), "it waits for the next claim");
        assert!(has_ended(&mut second) && has_ended(&mut first));
        assert!(!waiters.is_empty());
    }

    #[tokio::test]
    async fn a_message_that_comes_while_the_store_is_asked_is_not_missed() {
        for ask in [Waiters::wake, Waiters::ask] {
            let (waiters, rounds) = (Waiters::default(), Cell::new(0));
            let wait = waiters.ended(&ONE, LONGEST, || {
                rounds.set(rounds.get() + 1);
                ask(&waiters, &ONE);
                ready((rounds.get() == 1).then_some(LEASE))
            });
            timeout(FIRST_PAUSE / 4, wait).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_told_when_someone_begins_to_wait_for_it_and_when_no_one_does() {
        let waiters = &Waiters::default();
        let wait = |key: &'static _| -> Wait<'_> { Box::pin(waiters.ended(key, LONGEST, pending)) };
        let mut known = wait(&ONE);
        assert!(!has_ended(&mut known));
        let mut changes = waiters.changes();
        let mut told = || match pin!(changes.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => told,
            Poll::Pending => Vec::new(),
        };
        assert_eq!(told(), [(ONE, true)]);
        let mut first = wait(&OTHER);
        assert!(!has_ended(&mut first));
        assert_eq!(told(), [(OTHER, true)], "and not of the key that was known");
        let mut second = wait(&OTHER);
        assert!(!has_ended(&mut second));
        assert_eq!(told(), [], "someone waits already");
        drop(first);
        assert_eq!(told(), [], "another one waits");
        drop(second);
        assert_eq!(told(), [(OTHER, false)]);
        waiters.wake(&ONE);
        assert_eq!(told(), [(ONE, false)]);
        drop(changes);
        drop(wait(&OTHER));
        assert!(waiters.is_empty() && waiters.lock().changes.is_none(), "what no one reads is not kept");
    }
}

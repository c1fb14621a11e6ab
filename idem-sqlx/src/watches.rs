//! The requests in this process that wait for the end of a claim. Of those that wait for one claim, one asks the database.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idem_runtime::StorageKey;
use tokio::time::{Instant, timeout};

#[derive(Default)]
pub(crate) struct Watches {
    keys: Mutex<HashMap<StorageKey, Arc<Watch>>>,
}

struct Watch {
    /// Held by the one that asks.
    asks: tokio::sync::Mutex<()>,
    /// When it last did.
    asked: Mutex<Instant>,
    /// The claim may have ended.
    ended: AtomicBool,
}

/// A request that waits, until this is dropped.
pub(crate) struct Watcher<'a> {
    watches: &'a Watches,
    key: StorageKey,
    watch: Arc<Watch>,
}

/// The request that asks for all who wait for a key. If it is dropped, another one asks.
pub(crate) struct Turn<'a> {
    watcher: &'a Watcher<'a>,
    _asks: tokio::sync::MutexGuard<'a, ()>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { asks: tokio::sync::Mutex::default(), asked: Mutex::new(Instant::now()), ended: AtomicBool::default() }
    }
}

impl Watch {
    fn asked(&self) -> MutexGuard<'_, Instant> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watches {
    fn keys(&self) -> MutexGuard<'_, HashMap<StorageKey, Arc<Watch>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request that waits for the claim under `key`.
    pub(crate) fn join(&self, key: &StorageKey) -> Watcher<'_> {
        let watch = Arc::clone(self.keys().entry(*key).or_default());
        Watcher { watches: self, key: *key, watch }
    }
}

impl Watcher<'_> {
    /// Waits until no other request asks. Returns `None` if the claim may have ended meanwhile, or if the one whose turn it is has not
    /// asked for this time: it is not polled.
    pub(crate) async fn turn(&self, longest: Duration) -> Option<Turn<'_>> {
        let mut lock = pin!(self.watch.asks.lock());
        let asks = loop {
            match timeout(longest, &mut lock).await {
                Ok(asks) => break asks,
                Err(_) if self.watch.asked().elapsed() < longest => {}
                Err(_) => {
                    self.leave();
                    return None;
                }
            }
        };
        let turn = Turn { watcher: self, _asks: asks };
        turn.asks();
        let ended = self.watch.ended.load(Ordering::SeqCst);
        (!ended).then_some(turn)
    }

    /// Requests that come later ask by themselves.
    fn leave(&self) {
        let Self { watches, key, watch } = self;
        if let Entry::Occupied(entry) = watches.keys().entry(*key)
            && Arc::ptr_eq(entry.get(), watch)
        {
            entry.remove();
        }
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let mut keys = self.watches.keys();
        // It is dropped under the lock, so that of two that leave at once the later one sees that it is the last.
        let watch = mem::take(&mut self.watch);
        if let Entry::Occupied(entry) = keys.entry(self.key)
            && Arc::ptr_eq(entry.get(), &watch)
            // The map's own, and this one's.
            && Arc::strong_count(&watch) == 2
        {
            entry.remove();
        }
        drop(watch);
    }
}

impl Turn<'_> {
    /// The database is about to be asked.
    pub(crate) fn asks(&self) {
        *self.watcher.watch.asked() = Instant::now();
    }

    /// The claim may have ended: all who wait for it go on.
    pub(crate) fn end(self) {
        self.watcher.watch.ended.store(true, Ordering::SeqCst);
        self.watcher.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    const KEY: StorageKey = StorageKey::from_bytes([1; 32]);
    const LONGEST: Duration = Duration::from_secs(5);

    /// What `turn` returns at once, or `None` if it waits.
    async fn turn<'a>(watcher: &'a Watcher<'_>) -> Option<Option<Turn<'a>>> {
        tokio::select! {
            biased;
            turn = watcher.turn(LONGEST) => Some(turn),
            () = ready(()) => None,
        }
    }

    #[tokio::test]
    async fn one_request_polls_for_all() {
        let watches = Watches::default();
        let (first, second, third) = (watches.join(&KEY), watches.join(&KEY), watches.join(&KEY));
        let asks = turn(&first).await.unwrap().unwrap();
        assert!(turn(&second).await.is_none(), "the first one asks");
        drop(asks);
        drop(first);
        let asks = turn(&second).await.unwrap().expect("the first one gave up");
        assert!(turn(&third).await.is_none());
        asks.end();
        assert!(matches!(turn(&third).await, Some(None)), "the claim has ended");
        let next = watches.join(&KEY);
        assert!(turn(&next).await.unwrap().is_some(), "it waits for the next claim");
        drop((second, third, next));
        assert!(watches.keys().is_empty());
    }

    #[tokio::test]
    async fn one_whose_turn_it_is_and_that_does_not_ask_holds_up_no_one_for_long() {
        let longest = Duration::from_secs(1);
        let watches = Watches::default();
        let (first, second) = (watches.join(&KEY), watches.join(&KEY));
        let asks = turn(&first).await.unwrap().unwrap();
        let mut waits = Box::pin(second.turn(longest));
        for _ in 0..100 {
            assert!(timeout(longest / 50, &mut waits).await.is_err(), "the first one asks");
            asks.asks();
        }
        assert!((&mut waits).await.is_none(), "it looks by itself");
        let next = watches.join(&KEY);
        assert!(turn(&next).await.unwrap().is_some(), "those who come later have another turn");
        drop((asks, waits));
        drop((first, second, next));
        assert!(watches.keys().is_empty());
    }
}

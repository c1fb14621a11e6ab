//! The requests in this process that wait for claims of other processes to end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::key::StorageKey;

/// The keys whose claims are waited for. Those who wait ask the store now and then, and sooner if they are
/// [woken](Self::wake): a message may be lost, and nothing depends on it.
///
/// ```
/// use std::sync::Arc;
/// use idem_runtime::StorageKey;
/// use idem_runtime::remote::Waiters;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (waiters, key) = (Arc::new(Waiters::default()), StorageKey::from_bytes([7; 32]));
/// let mut waiter = waiters.register(&key);
/// // .. ask the store whether the claim has ended; if it has not: ..
/// waiters.wake(&key);
/// waiter.woken().await;
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Waiters {
    keys: Mutex<HashMap<StorageKey, watch::Sender<()>>>,
    changed: Notify,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<StorageKey, watch::Sender<()>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a waiter. It misses no wake-up from now on, so register first and ask the store then.
    pub fn register(self: &Arc<Self>, key: &StorageKey) -> Waiter {
        let woken = match self.lock().entry(*key) {
            Entry::Occupied(known) => known.get().subscribe(),
            Entry::Vacant(new) => {
                let woken = new.insert(watch::Sender::new(())).subscribe();
                self.changed.notify_one();
                woken
            }
        };
        Waiter { waiters: Arc::clone(self), key: *key, woken: Some(woken) }
    }

    /// Wakes those who wait for the claim under `key`: it may have ended.
    pub fn wake(&self, key: &StorageKey) {
        if let Some(sender) = self.lock().get(key) {
            sender.send_replace(());
        }
    }

    /// Wakes everyone: a message may have been missed.
    pub fn wake_all(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }

    /// Returns whether no one waits.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns the keys whose claims are waited for, in no order.
    pub fn keys(&self) -> Vec<StorageKey> {
        self.lock().keys().copied().collect()
    }

    /// Resolves when [`keys`](Self::keys) has changed since this was called last. Spurious wake-ups are possible. Meant for
    /// one caller at a time, the [listener](crate::remote::Listener).
    ///
    /// Cancel safe: a change that was not returned is returned the next time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// One who waits for the claim under a key, until it is dropped.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    key: StorageKey,
    /// Always there until the waiter is dropped.
    woken: Option<watch::Receiver<()>>,
}

impl Waiter {
    /// Resolves when the waiter was woken since it was registered, or since this resolved last.
    ///
    /// Cancel safe: a wake-up that was not returned is returned the next time.
    pub async fn woken(&mut self) {
        match &mut self.woken {
            // The sender lives as long as a receiver does, so there is no error.
            Some(woken) => drop(woken.changed().await),
            None => pending().await,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut keys = self.waiters.lock();
        self.woken = None;
        if keys.get(&self.key).is_some_and(|sender| sender.receiver_count() == 0) {
            keys.remove(&self.key);
            self.waiters.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: StorageKey = StorageKey::from_bytes([1; 32]);
    const OTHER: StorageKey = StorageKey::from_bytes([2; 32]);

    async fn is_woken(waiter: &mut Waiter) -> bool {
        tokio::select! {
            biased;
            () = waiter.woken() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn those_who_wait_for_a_key_are_woken_and_no_one_else() {
        let waiters = Arc::new(Waiters::default());
        let (mut first, mut second, mut other) =
            (waiters.register(&ONE), waiters.register(&ONE), waiters.register(&OTHER));
        waiters.wake(&ONE);
        assert!(is_woken(&mut first).await && is_woken(&mut second).await);
        assert!(!is_woken(&mut first).await && !is_woken(&mut other).await);
        waiters.wake_all();
        assert!(is_woken(&mut first).await && is_woken(&mut other).await);
    }

    #[tokio::test]
    async fn a_key_is_listed_while_someone_waits_for_it_and_its_changes_are_told() {
        let waiters = Arc::new(Waiters::default());
        let changed = async || {
            tokio::select! {
                biased;
                () = waiters.changed() => true,
                () = std::future::ready(()) => false,
            }
        };
        assert!(waiters.is_empty() && !changed().await);
        let (first, second) = (waiters.register(&ONE), waiters.register(&ONE));
        assert_eq!(waiters.keys(), [ONE]);
        assert!(changed().await && !changed().await);
        drop(first);
        assert!(!waiters.is_empty() && !changed().await, "another one waits");
        drop(second);
        assert!(waiters.is_empty() && changed().await);
    }
}

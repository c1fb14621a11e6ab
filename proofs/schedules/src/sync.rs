//! The names of `idem_runtime::sync`, under the scheduler.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use tokio::sync::futures::OwnedNotified;
pub(crate) use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A point at which any other thread may go first.
#[derive(Default)]
struct SwitchPoint(shuttle::sync::atomic::AtomicBool);

impl SwitchPoint {
    fn step(&self) {
        self.0.load(Ordering::SeqCst);
    }
}

/// A counter, each operation of which is one step: a compare-and-set that fails is tried again, so that all of
/// `fetch_update` happens at once.
pub(crate) struct AtomicUsize(SwitchPoint, std::sync::atomic::AtomicUsize);

#[allow(dead_code, reason = "the faults use more than the store")]
impl AtomicUsize {
    pub(crate) fn new(value: usize) -> Self {
        Self(SwitchPoint::default(), std::sync::atomic::AtomicUsize::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> usize {
        self.0.step();
        self.1.load(order)
    }

    pub(crate) fn store(&self, value: usize, order: Ordering) {
        self.0.step();
        self.1.store(value, order);
    }

    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.0.step();
        self.1.fetch_add(value, order)
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        self.0.step();
        self.1.fetch_sub(value, order)
    }

    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        update: impl FnMut(usize) -> Option<usize>,
    ) -> Result<usize, usize> {
        self.0.step();
        self.1.fetch_update(set, fetch, update)
    }
}

/// What waiters wait on. Others may go first before it is called, and those that it wakes before the caller continues.
#[derive(Default)]
pub(crate) struct Notify(SwitchPoint, Arc<tokio::sync::Notify>);

impl Notify {
    pub(crate) fn notify_waiters(&self) {
        self.0.step();
        self.1.notify_waiters();
        self.0.step();
    }

    pub(crate) fn notified_owned(self: Arc<Self>) -> OwnedNotified {
        self.0.step();
        Arc::clone(&self.1).notified_owned()
    }
}

/// In the place of random words: an order of steps can only be repeated if the keys always meet in the same shard.
pub(crate) struct RandomState;

impl RandomState {
    pub(crate) fn new() -> Self {
        Self
    }
}

impl BuildHasher for RandomState {
    type Hasher = std::collections::hash_map::DefaultHasher;

    fn build_hasher(&self) -> Self::Hasher {
        Self::Hasher::new()
    }
}

/// moka's trait, as far as the store implements it. No time passes here, so it is never called.
#[allow(dead_code, reason = "never called")]
pub(crate) trait Expiry<K, V> {
    fn expire_after_create(&self, key: &K, value: &V, created_at: Instant) -> Option<Duration>;
}

/// In the place of moka: a map, each operation of which is one step under a lock. Like moka's, its iterator sees what is there
/// when it comes by.
pub(crate) struct Cache<K, V, S> {
    map: Mutex<HashMap<K, V, S>>,
}

impl<K, V> Cache<K, V, RandomState> {
    pub(crate) fn builder() -> CacheBuilder<K, V> {
        CacheBuilder(PhantomData)
    }
}

impl<K: Copy + Eq + Hash + Ord, V: Clone, S: BuildHasher> Cache<K, V, S> {
    fn map(&self) -> MutexGuard<'_, HashMap<K, V, S>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.map().get(key).cloned()
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        let old = self.map().insert(key, value);
        drop(old);
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        self.map().remove(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Arc<K>, V)> {
        let mut keys: Vec<K> = self.map().keys().copied().collect();
        keys.sort_unstable();
        keys.into_iter().filter_map(|key| self.get(&key).map(|value| (Arc::new(key), value)))
    }

    pub(crate) fn run_pending_tasks(&self) {}
}

pub(crate) struct CacheBuilder<K, V>(PhantomData<(K, V)>);

impl<K, V> CacheBuilder<K, V> {
    pub(crate) fn name(self, _: &str) -> Self {
        self
    }

    pub(crate) fn initial_capacity(self, _: usize) -> Self {
        self
    }

    pub(crate) fn expire_after<E>(self, _: E) -> Self {
        self
    }

    pub(crate) fn build_with_hasher<S>(self, hasher: S) -> Cache<K, V, S> {
        Cache { map: Mutex::new(HashMap::with_hasher(hasher)) }
    }
}

/// Threads that are not started: the tests make the janitor's rounds.
pub(crate) mod thread {
    pub(crate) use shuttle::thread::yield_now;

    pub(crate) struct Builder;

    impl Builder {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn name(self, _: String) -> Self {
            self
        }

        pub(crate) fn spawn(self, _: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
            Ok(())
        }
    }
}

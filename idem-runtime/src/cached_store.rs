//! A cache in this process in front of a remote store.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as MokaCache;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Begin, BeginOptions, Claim, KeyPage, KeyState, Store, StoreCapabilities, StoredEntry};

/// What an entry takes besides its record, in bytes: the key, and what moka needs for it.
const ENTRY_BYTES: u32 = 256;
/// moka panics if a time is longer than a thousand years.
const MAX_AGE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A store with a cache in front of it, so that a retry that comes to the process that ran the handler gets its replay without a
/// round trip.
///
/// ```
/// # use idem_runtime::MemoryStore as RemoteStore;
/// use idem_runtime::{CachedStore, Idempotency};
///
/// let remote = RemoteStore::new();
/// let idempotency = Idempotency::new(CachedStore::new(remote));
/// ```
///
/// Only records are cached, and only those that this process completed. A cached record never outlives the stored one, because
/// its TTL starts before the store's. Claims are always left to the store, which alone decides who runs the handler. So a
/// record that the cache evicts costs a round trip and nothing else; the least recently used one goes first.
///
/// While the machine is suspended, cached records do not get older. If machines are suspended, keep `max_age` short.
///
/// [`forget`](Store::forget) also removes the record from the cache of the process that calls it. Another process may replay it from
/// its cache for as long as [`max_age`](CachedStoreBuilder::max_age) says, unless it [inspects](Store::inspect) the key.
#[derive(Clone)]
pub struct CachedStore<S> {
    store: S,
    cache: Arc<Cache>,
}

/// The cache, and the clock by which its records expire.
struct Cache {
    records: MokaCache<StorageKey, CachedRecord>,
    /// How many calls of `forget` there were. A record whose acknowledgement comes after one is not cached.
    forgets: Mutex<u64>,
    /// The clock of the first engine, or the system clock if the store was used before.
    clock: OnceLock<Arc<dyn Clock>>,
}

#[derive(Clone)]
struct CachedRecord {
    record: Record,
    expires_at: Timestamp,
}

impl Cache {
    fn now(&self) -> Timestamp {
        self.clock.get_or_init(|| Arc::new(SystemClock::new())).now()
    }

    fn get(&self, key: &StorageKey) -> Option<Record> {
        let cached = self.records.get(key)?;
        if self.now() < cached.expires_at {
            return Some(cached.record);
        }
        self.records.invalidate(key);
        None
    }

    fn forgets(&self) -> MutexGuard<'_, u64> {
        self.forgets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Store> CachedStore<S> {
    /// Puts a cache of the default size in front of `store`.
    pub fn new(store: S) -> Self {
        Self::builder(store).build()
    }

    /// Returns a builder, to put a cache with other limits in front of `store`.
    pub fn builder(store: S) -> CachedStoreBuilder<S> {
        CachedStoreBuilder { store, max_bytes: 64 * 1024 * 1024, max_age: Duration::from_secs(60) }
    }

    /// Returns the store behind the cache.
    pub fn store(&self) -> &S {
        &self.store
    }
}

impl<S> fmt::Debug for CachedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore").field("records", &self.cache.records.entry_count()).finish_non_exhaustive()
    }
}

/// Sets the limits of a [`CachedStore`].
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{CachedStore, Idempotency};
///
/// # let remote = idem_runtime::MemoryStore::new();
/// let cached = CachedStore::builder(remote).max_bytes(16 * 1024 * 1024).max_age(Duration::from_secs(10)).build();
/// let idempotency = Idempotency::new(cached);
/// # let _ = idempotency;
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct CachedStoreBuilder<S> {
    store: S,
    max_bytes: u64,
    max_age: Duration,
}

impl<S: Store> CachedStoreBuilder<S> {
    /// Sets how many bytes of records are cached at most; above that the least recently used are evicted. Default: 64 MiB.
    pub fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets how long a record stays in the cache, if it lives that long: most retries come soon. Default: one minute.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Builds the store.
    pub fn build(self) -> CachedStore<S> {
        let bytes = |_: &StorageKey, cached: &CachedRecord| {
            u32::try_from(cached.record.bytes().len()).unwrap_or(u32::MAX).saturating_add(ENTRY_BYTES)
        };
        // moka's default policy refuses new entries of a full cache, and the newest records are those that are retried.
        let records = MokaCache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .weigher(bytes)
            .max_capacity(self.max_bytes)
            .time_to_live(self.max_age.min(MAX_AGE))
            .build();
        let cache = Cache { records, forgets: Mutex::default(), clock: OnceLock::new() };
        CachedStore { store: self.store, cache: Arc::new(cache) }
    }
}

impl<S> fmt::Debug for CachedStoreBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStoreBuilder")
            .field("max_bytes", &self.max_bytes)
            .field("max_age", &self.max_age)
            .finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for CachedStore<S> {
    type Claim = CachedClaim<S::Claim>;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        // A request with another fingerprint gets the record as well: the engine compares, as it does for the store's.
        if let Some(record) = self.cache.get(key) {
            return Ok(Begin::Completed(record));
        }
        let cached =
            |claim| CachedClaim { claim, key: *key, cache: Arc::clone(&self.cache), completed_at: Arc::default() };
        Ok(match self.store.begin(key, fingerprint, options).await? {
            Begin::Claimed(claim) => Begin::Claimed(cached(claim)),
            Begin::Abandoned(claim) => Begin::Abandoned(cached(claim)),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        // After the store, so that no retry finds the record here once this returns; and also if it is not known whether the
        // store forgot it, because it failed or because this future was dropped.
        let _forgetting = Forgetting { cache: &self.cache, key };
        self.store.forget(key).await
    }

    /// Returns what the store has. Replays from the cache are not counted there, so their number is not known.
    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        let entry = self.store.inspect(key).await?;
        let found = match entry.as_ref().map(|entry| &entry.state) {
            Some(KeyState::Completed(record)) => Some(record),
            _ => None,
        };
        // Another process has forgotten it: what follows from the inspection, as settling does, is about what the store has.
        if self.cache.get(key).as_ref() != found {
            self.cache.records.invalidate(key);
        }
        Ok(entry.map(|entry| StoredEntry { replays: None, ..entry }))
    }

    async fn inspect_unknown(&self, from: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, StoreError> {
        self.store.inspect_unknown(from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.revoke(key).await
    }

    async fn drained(&self) {
        self.store.drained().await;
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = self.cache.clock.set(Arc::clone(clock));
        self.store.attach(clock)
    }
}

/// Removes the record from the cache when it is dropped.
struct Forgetting<'a> {
    cache: &'a Cache,
    key: &'a StorageKey,
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        let mut forgets = self.cache.forgets();
        *forgets += 1;
        self.cache.records.invalidate(self.key);
    }
}

/// A claim in the store behind a [`CachedStore`].
pub struct CachedClaim<C> {
    claim: C,
    key: StorageKey,
    cache: Arc<Cache>,
    /// When the store was first asked to complete the claim. A clone that asks again has the same record.
    completed_at: Arc<OnceLock<Timestamp>>,
}

#[deny(clippy::missing_trait_methods)]
impl<C: Claim> Claim for CachedClaim<C> {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.claim.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let Self { claim, key, cache, completed_at } = self;
        // Before the store is asked, so that the record expires here first.
        let expires_at = completed_at.get_or_init(|| cache.now()).after(ttl);
        let forgets = *cache.forgets();
        let cached = CachedRecord { record: record.clone(), expires_at };
        claim.complete(record, ttl).await?;
        let forgets_now = cache.forgets();
        if *forgets_now == forgets {
            cache.records.insert(key, cached);
        }
        Ok(())
    }

    async fn release(self) -> Result<(), StoreError> {
        self.claim.release().await
    }

    fn try_clone(&self) -> Option<Self> {
        let Self { claim, key, cache, completed_at } = self;
        claim.try_clone().map(|claim| Self {
            claim,
            key: *key,
            cache: Arc::clone(cache),
            completed_at: Arc::clone(completed_at),
        })
    }
}

impl<C> fmt::Debug for CachedClaim<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedClaim").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::test_support::intercept::{Hooks, Intercept};
    use std::future::{Future, poll_fn};
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use super::*;
    use crate::clock::ManualClock;
    use crate::engine::{Idempotency, KeyStatus, Settled};
    use crate::memory::{MemoryClaim, MemoryStore};
    use crate::outcome::Outcome;
    use crate::record::RecordBuilder;

    #[cfg(feature = "conformance")]
    mod conformance {
        crate::conformance_tests!(|| async { crate::CachedStore::new(crate::MemoryStore::new()) });
    }

    const KEY: StorageKey = StorageKey::from_bytes([1; 32]);
    const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);
    const OTHER: Fingerprint = Fingerprint::from_bytes([8; 32]);
    const TTL: Duration = Duration::from_secs(60);

    fn record() -> Record {
        let mut builder = RecordBuilder::new();
        builder.put(b"the response");
        Record::with_content(FINGERPRINT, builder, Timestamp::NEVER, None)
    }

    /// A cached store, the store behind it, and the clock of both.
    fn cached() -> (CachedStore<MemoryStore>, MemoryStore, ManualClock) {
        let (behind, clock) = (MemoryStore::new(), ManualClock::new());
        let store = CachedStore::new(behind.clone());
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        assert!(store.attach(&shared).judges_expiry);
        (store, behind, clock)
    }

    async fn begin<S: Store>(store: &S, fingerprint: &Fingerprint) -> Begin<S::Claim> {
        store.begin(&KEY, fingerprint, &BeginOptions::new(TTL, TTL)).await.unwrap()
    }

    async fn complete(store: &CachedStore<MemoryStore>) {
        let Begin::Claimed(claim) = begin(store, &FINGERPRINT).await else { panic!("a free key") };
        claim.complete(record(), TTL).await.unwrap();
    }

    #[tokio::test]
    async fn what_this_process_completed_is_replayed_without_the_store() {
        let (store, behind, _clock) = cached();
        complete(&store).await;
        // So that the record can only come from the cache.
        assert!(behind.forget(&KEY).await.unwrap());
        for fingerprint in [FINGERPRINT, OTHER] {
            match begin(&store, &fingerprint).await {
                Begin::Completed(found) => {
                    assert_eq!(found, record(), "with its own fingerprint, for the engine to compare")
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn the_number_of_replays_is_not_known_since_those_from_here_are_not_counted() {
        let (store, behind, _clock) = cached();
        complete(&store).await;
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
        assert_eq!(behind.inspect(&KEY).await.unwrap().unwrap().replays, Some(0));
        assert_eq!(store.inspect(&KEY).await.unwrap().unwrap().replays, None);
    }

    #[tokio::test]
    async fn what_another_process_completed_is_always_asked_for() {
        let (store, behind, _clock) = cached();
        let Begin::Claimed(claim) = begin(&behind, &FINGERPRINT).await else { panic!("a free key") };
        claim.complete(record(), TTL).await.unwrap();
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
        assert!(behind.forget(&KEY).await.unwrap());
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Claimed(_)));
    }

    #[tokio::test]
    async fn a_record_expires_here_when_it_expires_there() {
        let (store, behind, clock) = cached();
        complete(&store).await;
        clock.advance(TTL - Duration::from_nanos(1));
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
        clock.advance(Duration::from_nanos(1));
        let Begin::Claimed(claim) = begin(&store, &FINGERPRINT).await else { panic!("expired at its TTL") };
        let running: Begin<MemoryClaim> = begin(&behind, &FINGERPRINT).await;
        assert!(matches!(running, Begin::InFlight(_)), "claims are the store's");
        claim.release().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_forgotten_is_gone_here_too() {
        let (store, _behind, _clock) = cached();
        complete(&store).await;
        assert!(store.forget(&KEY).await.unwrap());
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Claimed(_)));
    }

    #[test]
    fn the_limits_are_those_of_the_documentation() {
        let CachedStoreBuilder { max_bytes, max_age, .. } = CachedStore::builder(MemoryStore::new());
        assert_eq!((max_bytes, max_age), (64 << 20, Duration::from_secs(60)));
    }

    /// A claim of a store that loses the reply to the first completion.
    struct Repeated {
        completions: Arc<AtomicUsize>,
    }

    impl Claim for Repeated {
        async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
            Ok(())
        }

        async fn complete(self, _: Record, _: Duration) -> Result<(), StoreError> {
            let is_first = self.completions.fetch_add(1, Ordering::SeqCst) == 0;
            if is_first { Err(StoreError::unavailable("the reply was lost")) } else { Ok(()) }
        }

        async fn release(self) -> Result<(), StoreError> {
            Ok(())
        }

        fn try_clone(&self) -> Option<Self> {
            Some(Self { completions: Arc::clone(&self.completions) })
        }
    }

    #[tokio::test]
    async fn a_record_whose_completion_was_repeated_expires_by_the_first_try() {
        let (store, _behind, clock) = cached();
        let claim = Repeated { completions: Arc::default() };
        let claim = CachedClaim { claim, key: KEY, cache: store.cache.clone(), completed_at: Arc::default() };
        let again = claim.try_clone().expect("the store behind can be asked again");
        assert!(claim.complete(record(), TTL).await.is_err());
        assert!(store.cache.get(&KEY).is_none());
        clock.advance(TTL / 2);
        again.complete(record(), TTL).await.unwrap();
        clock.advance(TTL / 2 - Duration::from_nanos(1));
        assert!(store.cache.get(&KEY).is_some());
        clock.advance(Duration::from_nanos(1));
        assert!(store.cache.get(&KEY).is_none());
    }

    #[tokio::test]
    async fn what_is_settled_is_what_the_store_has_and_not_what_another_process_has_forgotten() {
        let (store, behind, _clock) = cached();
        let engine = Idempotency::new(store.clone());
        complete(&store).await;
        assert!(behind.forget(&KEY).await.unwrap());
        drop(begin(&behind, &FINGERPRINT).await);
        let found = engine.inspect_key(KEY).await.unwrap().unwrap();
        assert_eq!(found.status(), KeyStatus::OutcomeUnknown);
        assert_eq!(engine.settle_key(KEY, Outcome::Release, None).await.unwrap(), Settled::Now);
        assert!(matches!(begin(&behind, &FINGERPRINT).await, Begin::Claimed(_)));
    }

    #[tokio::test]
    async fn a_record_that_is_inspected_stays_in_the_cache() {
        let (store, _behind, _clock) = cached();
        complete(&store).await;
        let entry = store.inspect(&KEY).await.unwrap().unwrap();
        let KeyState::Completed(found) = entry.state else { panic!("it is completed") };
        assert_eq!(store.cache.get(&KEY), Some(found));
    }

    /// The store forgets a key, and never says so.
    struct Silent;

    impl Hooks<MemoryStore> for Silent {
        async fn forget(&self, store: &MemoryStore, key: &StorageKey) -> Result<bool, StoreError> {
            store.forget(key).await?;
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn what_is_perhaps_forgotten_is_gone_here_too() {
        let store = CachedStore::new(Intercept::new(MemoryStore::new(), Silent));
        let Begin::Claimed(claim) = begin(&store, &FINGERPRINT).await else { panic!("a free key") };
        claim.complete(record(), TTL).await.unwrap();
        let mut forget = Box::pin(store.forget(&KEY));
        assert!(polled_once(forget.as_mut()).await.is_none());
        drop(forget);
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Claimed(_)));
    }

    async fn polled_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
        poll_fn(|cx| {
            Poll::Ready(match future.as_mut().poll(cx) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_claim_ends_here_when_it_ends_there() {
        let (store, _behind, _clock) = cached();
        let Begin::Claimed(claim) = begin(&store, &FINGERPRINT).await else { panic!("a free key") };
        let mut ended = Box::pin(store.ended(&KEY));
        assert!(polled_once(ended.as_mut()).await.is_none());
        claim.release().await.unwrap();
        ended.await;
    }

    /// The store has something left to do.
    struct Busy;

    impl Hooks<MemoryStore> for Busy {
        async fn drained(&self, _: &MemoryStore) {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_drain_waits_for_the_store_behind() {
        let store = CachedStore::new(Intercept::new(MemoryStore::new(), Busy));
        assert!(polled_once(Box::pin(store.drained()).as_mut()).await.is_none());
        let store = CachedStore::new(MemoryStore::new());
        assert!(polled_once(Box::pin(store.drained()).as_mut()).await.is_some());
    }

    #[tokio::test]
    async fn a_cache_without_room_costs_a_round_trip_and_nothing_else() {
        let store = CachedStore::builder(MemoryStore::new()).max_bytes(1).max_age(Duration::MAX).build();
        complete(&store).await;
        store.cache.records.run_pending_tasks();
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
    }

    #[tokio::test]
    async fn the_newest_records_stay_and_the_cache_keeps_its_limit() {
        const KEYS: u8 = 100;
        let behind = MemoryStore::new();
        let store = CachedStore::builder(behind.clone()).max_bytes(10 * 400).build();
        let options = BeginOptions::new(TTL, TTL);
        let key = |number| StorageKey::from_bytes([number; 32]);
        for number in 0..KEYS {
            let Begin::Claimed(claim) = store.begin(&key(number), &FINGERPRINT, &options).await.unwrap() else {
                panic!("a free key")
            };
            claim.complete(record(), TTL).await.unwrap();
            store.cache.records.run_pending_tasks();
            assert!(store.cache.records.weighted_size() <= 10 * 400);
        }
        for number in 0..KEYS {
            assert!(behind.forget(&key(number)).await.unwrap());
        }
        let newest = store.begin(&key(KEYS - 1), &FINGERPRINT, &options).await.unwrap();
        assert!(matches!(newest, Begin::Completed(_)), "the newest record is cached: {newest:?}");
        let oldest = store.begin(&key(0), &FINGERPRINT, &options).await.unwrap();
        assert!(matches!(oldest, Begin::Claimed(_)), "the oldest record was evicted: {oldest:?}");
    }
}

//! Records of a remote store, kept at hand.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use moka::sync::Cache;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Begin, Claim, Duties, Found, Store, StoreError, Terms};

/// A store with a cache in front of it, so that a retry which comes to the process that ran the body is answered without a
/// round trip.
///
/// ```
/// # use idem_runtime::MemoryStore as RemoteStore;
/// use idem_runtime::{Idempotency, Layered};
///
/// let remote = RemoteStore::new();
/// let idempotency = Idempotency::new(Layered::new(remote));
/// ```
///
/// Only records are kept here, and only those that this process completed: a record does not change until it is over, and
/// its time began to run here before it began in the store, so it is never answered from here when the store has forgotten
/// it. A claim is always asked for at the store, which alone decides who runs the body; so what the cache drops for want of
/// room costs a round trip and nothing else.
///
/// Time that a machine spends asleep does not count here. Where machines sleep, keep `max_age` short.
///
/// [`forget`](Store::forget) empties the cache of the process that calls it. Another process may answer from its own for as
/// long as [`max_age`](LayeredBuilder::max_age) says.
#[derive(Clone)]
pub struct Layered<S> {
    store: S,
    front: Front,
}

/// The cache, and what tells the time in it.
#[derive(Clone)]
struct Front {
    records: Cache<StorageKey, Kept>,
    /// How often something was forgotten. A record that the store acknowledged late is not put back by it.
    forgotten: Arc<Mutex<u64>>,
    /// The engine's clock, from when the store is attached on.
    clock: Arc<OnceLock<Arc<dyn Clock>>>,
    system_clock: SystemClock,
}

#[derive(Clone)]
struct Kept {
    record: Record,
    expires_at: Timestamp,
}

impl Front {
    fn now(&self) -> Timestamp {
        self.clock.get().map_or_else(|| self.system_clock.now(), Clock::now)
    }

    fn get(&self, key: &StorageKey) -> Option<Record> {
        let kept = self.records.get(key)?;
        if self.now() < kept.expires_at {
            return Some(kept.record);
        }
        self.records.invalidate(key);
        None
    }

    fn forgotten(&self) -> MutexGuard<'_, u64> {
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Store> Layered<S> {
    /// `store` with a cache of the default size in front of it.
    pub fn new(store: S) -> Self {
        Self::builder(store).build()
    }

    /// `store` with a cache of your own measure in front of it.
    pub fn builder(store: S) -> LayeredBuilder<S> {
        LayeredBuilder { store, max_bytes: 64 * 1024 * 1024, max_age: Duration::from_secs(60) }
    }

    /// The store behind the cache.
    pub fn store(&self) -> &S {
        &self.store
    }

    fn front_of<C>(&self, key: &StorageKey, begun: Begin<C>) -> Begin<LayeredClaim<C>> {
        let layered = |claim| LayeredClaim { claim, key: *key, front: self.front.clone(), asked: Arc::default() };
        match begun {
            Begin::Claimed(claim) => Begin::Claimed(layered(claim)),
            Begin::Abandoned(claim) => Begin::Abandoned(layered(claim)),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        }
    }
}

impl<S> fmt::Debug for Layered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").field("records", &self.front.records.entry_count()).finish_non_exhaustive()
    }
}

/// Sets the measure of a [`Layered`]'s cache.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Idempotency, Layered};
///
/// # let remote = idem_runtime::MemoryStore::new();
/// let layered = Layered::builder(remote).max_bytes(16 * 1024 * 1024).max_age(Duration::from_secs(10)).build();
/// let idempotency = Idempotency::new(layered);
/// # let _ = idempotency;
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct LayeredBuilder<S> {
    store: S,
    max_bytes: u64,
    max_age: Duration,
}

impl<S: Store> LayeredBuilder<S> {
    /// The most bytes of records at hand; beyond it the least used go. Default: 64 MiB.
    pub fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// How long a record is at hand, if it lives that long: most retries come soon. Default: one minute.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Builds the store.
    pub fn build(self) -> Layered<S> {
        // moka refuses times beyond a thousand years by a panic.
        let max_age = self.max_age.min(Duration::from_secs(365 * 24 * 60 * 60));
        let records = Cache::builder()
            .weigher(|_, kept: &Kept| u32::try_from(kept.record.bytes().len()).unwrap_or(u32::MAX).saturating_add(256))
            .max_capacity(self.max_bytes)
            .time_to_live(max_age)
            .build();
        let front =
            Front { records, forgotten: Arc::default(), clock: Arc::default(), system_clock: SystemClock::new() };
        Layered { store: self.store, front }
    }
}

impl<S> fmt::Debug for LayeredBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredBuilder")
            .field("max_bytes", &self.max_bytes)
            .field("max_age", &self.max_age)
            .finish_non_exhaustive()
    }
}

impl<S: Store> Store for Layered<S> {
    type Claim = LayeredClaim<S::Claim>;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        if let Some(record) = self.front.get(key) {
            return Ok(Begin::Completed(record));
        }
        Ok(self.front_of(key, self.store.begin(key, fingerprint, lease).await?))
    }

    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        // Whoever asked with another fingerprint gets the record as well: the engine compares, as it does for the store's.
        if let Some(record) = self.front.get(key) {
            return Ok(Begin::Completed(record));
        }
        Ok(self.front_of(key, self.store.begin_on_terms(key, fingerprint, terms).await?))
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let forgotten = self.store.forget(key).await;
        // After the store, so that a retry in between does not find it here any more once this returns; and also where it is
        // not known whether the store forgot it.
        let mut count = self.front.forgotten();
        *count += 1;
        self.front.records.invalidate(key);
        drop(count);
        forgotten
    }

    /// What stands in the store. Replays that were answered from here are not counted there, so it is not known how many there
    /// were.
    async fn inspect(&self, key: &StorageKey) -> Result<Option<Found>, StoreError> {
        let found = self.store.inspect(key).await?;
        Ok(found.map(|found| Found { replays: None, ..found }))
    }

    async fn drained(&self) {
        self.store.drained().await;
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        let _ = self.front.clock.set(Arc::clone(clock));
        self.store.attach(clock)
    }
}

/// A claim in the store behind a [`Layered`].
pub struct LayeredClaim<C> {
    claim: C,
    key: StorageKey,
    front: Front,
    /// When the store was first asked to complete the claim: the twin that asks again has the same record in mind.
    asked: Arc<OnceLock<Timestamp>>,
}

impl<C: Claim> Claim for LayeredClaim<C> {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.claim.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let Self { claim, key, front, asked } = self;
        // Before the store is asked, so that the record is over here first.
        let expires_at = asked.get_or_init(|| front.now()).after(ttl);
        let forgotten = *front.forgotten();
        let kept = Kept { record: record.clone(), expires_at };
        claim.complete(record, ttl).await?;
        let now_forgotten = front.forgotten();
        if *now_forgotten == forgotten {
            front.records.insert(key, kept);
        }
        Ok(())
    }

    async fn release(self) -> Result<(), StoreError> {
        self.claim.release().await
    }

    fn twin(&self) -> Option<Self> {
        let Self { claim, key, front, asked } = self;
        claim.twin().map(|claim| Self { claim, key: *key, front: front.clone(), asked: Arc::clone(asked) })
    }
}

impl<C> fmt::Debug for LayeredClaim<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayeredClaim").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::memory::{MemoryClaim, MemoryStore};
    use crate::record::Draft;

    #[cfg(feature = "conformance")]
    mod conformance {
        crate::conformance_tests!(|| async { crate::Layered::new(crate::MemoryStore::new()) });
    }

    const KEY: StorageKey = StorageKey::from_bytes([1; 32]);
    const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);
    const OTHER: Fingerprint = Fingerprint::from_bytes([8; 32]);
    const TTL: Duration = Duration::from_secs(60);

    fn record() -> Record {
        let mut draft = Draft::new();
        draft.put(b"the answer");
        Record::answer(FINGERPRINT, draft, Timestamp::NEVER, None)
    }

    /// A store, what stands behind it, and the clock of both.
    fn layered() -> (Layered<MemoryStore>, MemoryStore, ManualClock) {
        let (behind, clock) = (MemoryStore::new(), ManualClock::new());
        let store = Layered::new(behind.clone());
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        assert_eq!(store.attach(&shared), Duties::NONE);
        (store, behind, clock)
    }

    async fn begin<S: Store>(store: &S, fingerprint: &Fingerprint) -> Begin<S::Claim> {
        store.begin_on_terms(&KEY, fingerprint, &Terms::new(TTL, TTL)).await.unwrap()
    }

    async fn complete(store: &Layered<MemoryStore>) {
        let Begin::Claimed(claim) = begin(store, &FINGERPRINT).await else { panic!("a free key") };
        claim.complete(record(), TTL).await.unwrap();
    }

    #[tokio::test]
    async fn what_this_process_completed_is_answered_without_the_store() {
        let (store, behind, _clock) = layered();
        complete(&store).await;
        // So that an answer can only come from here.
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
    async fn what_another_process_completed_is_always_asked_for() {
        let (store, behind, _clock) = layered();
        let Begin::Claimed(claim) = begin(&behind, &FINGERPRINT).await else { panic!("a free key") };
        claim.complete(record(), TTL).await.unwrap();
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
        assert!(behind.forget(&KEY).await.unwrap());
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Claimed(_)));
    }

    #[tokio::test]
    async fn a_record_is_over_here_when_it_is_over_there() {
        let (store, behind, clock) = layered();
        complete(&store).await;
        clock.advance(TTL - Duration::from_nanos(1));
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
        clock.advance(Duration::from_nanos(1));
        let Begin::Claimed(claim) = begin(&store, &FINGERPRINT).await else { panic!("over at its TTL") };
        let running: Begin<MemoryClaim> = begin(&behind, &FINGERPRINT).await;
        assert!(matches!(running, Begin::InFlight(_)), "claims are the store's");
        claim.release().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_forgotten_is_gone_here_too() {
        let (store, _behind, _clock) = layered();
        complete(&store).await;
        assert!(store.forget(&KEY).await.unwrap());
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Claimed(_)));
    }

    #[tokio::test]
    async fn a_cache_without_room_costs_a_round_trip_and_nothing_else() {
        let store = Layered::builder(MemoryStore::new()).max_bytes(1).max_age(Duration::MAX).build();
        complete(&store).await;
        store.front.records.run_pending_tasks();
        assert!(matches!(begin(&store, &FINGERPRINT).await, Begin::Completed(_)));
    }
}

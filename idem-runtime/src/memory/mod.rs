//! The store in this process's memory: claims in maps with a mutex for each key, records in moka caches.
//!
//! `claims` and `records` have one part of each, `quota` enforces `max_entries` and `max_bytes`, and `janitor` reclaims memory without
//! traffic.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use self::claims::{ClaimSlot, Claims, PreviousOwner};
use self::janitor::Janitor;
use self::quota::{Quota, QuotaPermit};
use self::records::{KeyHasher, Recorded, Records, Swept};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Begin, BeginOptions, KeyPage, Store, StoreCapabilities, StoredEntry};
use crate::sync::{AtomicUsize, Mutex, MutexGuard};

mod claims;
mod janitor;
#[cfg(feature = "metrics")]
mod metrics;
mod quota;
mod records;

pub use self::claims::MemoryClaim;

/// How many keys a shard is meant for. moka removes everything in a cache that is due in one call, so shards are small.
const KEYS_PER_SHARD: usize = 8192;
/// The most shards: each has a cache, which takes 43 KB even if it is nearly empty, and what is spread over more memory is slower.
const MAX_SHARDS: usize = 256;
/// How many expired records a request removes from a shard if the store is full.
const MAX_REMOVED: usize = 64;
/// How many records it looks at. A shard may have more: what it misses, the janitor removes in its next round.
const MAX_LOOKED_AT: usize = 4096;
/// How many times as many a request removes, and looks at, for the bytes of a record.
const FOR_BYTES: usize = 16;
/// How many keys fill a page.
const MAX_PAGE: usize = 100;

/// Claims and records in this process's memory: the fastest store, for services that run as one process. A restart
/// forgets everything.
///
/// It holds at most [`max_entries`](MemoryStoreBuilder::max_entries) keys and [`max_bytes`](MemoryStoreBuilder::max_bytes) bytes. At the
/// limit a new key is refused ([`StoreError::Full`]), existing keys are still served, and nothing live is dropped. If there is no room for
/// the bytes of a response, the record has no content, and the handler does not run again.
///
/// Records expire by the engine's clock, to the nanosecond. Their memory is reclaimed up to twenty seconds later, even without traffic. If a
/// new key needs the room, it is reclaimed at once, or in a store with more than 4,096 keys up to two seconds later. Until then they
/// count in [`usage`](Self::usage).
///
/// Clones share the contents. Engines that share a store must have the same clock.
///
/// ```
/// use idem_runtime::{Idempotency, MemoryStore};
///
/// let store = MemoryStore::builder().max_entries(100_000).max_bytes(64 * 1024 * 1024).build();
/// let idempotency = Idempotency::new(store.clone());
/// assert_eq!(store.usage().entries, 0);
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.janitor.stop();
    }
}

/// What claims and the janitor share with the store.
struct Shared {
    shards: Box<[Shard]>,
    hasher: KeyHasher,
    quota: Arc<Quota>,
    /// The clock of the first engine, or the system clock if the store was used before.
    clock: OnceLock<Arc<dyn Clock>>,
    /// The shard in which the next request that needs room, or the janitor, begins to look.
    next_shard: AtomicUsize,
    /// The owners whose claims were revoked, until they have ended.
    revoked: Mutex<Vec<PreviousOwner>>,
    janitor: Janitor,
}

/// A part of the keys. What happens to a key is one step under the lock of the claims.
struct Shard {
    claims: Claims,
    records: Records,
}

impl Shard {
    fn new(hasher: KeyHasher) -> Self {
        Self { claims: Claims::new(hasher), records: Records::new(hasher) }
    }

    /// Removes up to `max` expired records, and looks at up to `look` records for it.
    fn sweep(&self, now: Timestamp, max: usize, look: usize) -> Swept {
        self.records.sweep(now, max, look, || self.claims.lock())
    }
}

impl Shared {
    fn shard(&self, key: &StorageKey) -> &Shard {
        // Bits in the middle: the tables within a shard use those at both ends.
        let [_, _, _, low, high, ..] = self.hasher.hash_one(key).to_le_bytes();
        &self.shards[usize::from(u16::from_le_bytes([low, high])) % self.shards.len()]
    }

    fn clock(&self) -> &dyn Clock {
        self.clock.get_or_init(|| Arc::new(SystemClock::new()))
    }

    /// Returns the owners whose claims were revoked, and that have not ended.
    fn revoked(&self) -> MutexGuard<'_, Vec<PreviousOwner>> {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.retain(PreviousOwner::is_alive);
        revoked
    }

    /// Makes what is to take the place of a claim, and room for it.
    fn record(&self, record: Record, ttl: Duration, mut permit: QuotaPermit) -> Recorded {
        let now = self.clock().now();
        let record = if self.grow(&mut permit, record.bytes().len(), now) { record } else { record.tombstone() };
        Recorded { record, expires_at: now.after(ttl), replays: 0, _permit: permit }
    }

    /// Adds `bytes` to the permit, and makes room for them if necessary. The expired records may be spread over all shards.
    fn grow(&self, permit: &mut QuotaPermit, bytes: usize, now: Timestamp) -> bool {
        let (mut removed, mut look) = (0, self.max_looked_at(FOR_BYTES));
        while !permit.grow(bytes) {
            let swept = if removed < FOR_BYTES * MAX_REMOVED { self.make_room(now, &mut look) } else { 0 };
            if swept == 0 {
                return permit.grow(bytes);
            }
            removed += swept;
        }
        true
    }

    /// Returns how many records a request may look at. In real time the work is bounded: if it looks in vain, the janitor goes on.
    fn max_looked_at(&self, times: usize) -> usize {
        if self.clock().is_real_time() { times * MAX_LOOKED_AT } else { usize::MAX }
    }

    /// Returns all shards, beginning with another one each time.
    fn shards_in_turn(&self) -> impl Iterator<Item = &Shard> {
        let (before, after) = self.shards.split_at(self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len());
        after.iter().chain(before)
    }

    /// Removes a few expired records from a shard that has some, and looks at up to `look` records for it. Returns how many it removed.
    fn make_room(&self, now: Timestamp, look: &mut usize) -> usize {
        for shard in self.shards_in_turn().filter(|shard| shard.records.earliest() <= now) {
            if *look == 0 {
                break;
            }
            let swept = shard.sweep(now, MAX_REMOVED, *look);
            *look -= swept.looked_at;
            if swept.removed > 0 {
                return swept.removed;
            }
        }
        0
    }
}

impl MemoryStore {
    /// Makes a store with the default limits.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder, to set the limits.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder { max_entries: 1_000_000, max_bytes: 1024 * 1024 * 1024 }
    }

    /// Returns what the store holds now.
    pub fn usage(&self) -> Usage {
        let shared = &self.inner.shared;
        let in_flight = shared.shards.iter().map(|shard| shard.claims.lock().len()).sum();
        let revoked = shared.revoked().len();
        // Each key has one permit, whether it is claimed or recorded, and so has an owner whose claim was revoked.
        let entries = shared.quota.entries();
        let completed = entries.saturating_sub(in_flight + revoked);
        Usage { in_flight, completed, entries, bytes: shared.quota.bytes() }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("usage", &self.usage()).finish()
    }
}

/// What a [`MemoryStore`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Claims, including those whose owner disappeared.
    pub in_flight: usize,
    /// Records whose memory has not been reclaimed yet.
    pub completed: usize,
    /// Keys that count against the limit, and executions whose claim was revoked, until they end.
    pub entries: usize,
    /// Bytes that count against the limit: a fixed part for each key, and the records.
    pub bytes: usize,
}

/// Sets the limits of a [`MemoryStore`].
///
/// ```
/// use idem_runtime::MemoryStore;
///
/// // At 640 bytes for each key, the keys alone take up to 61.0 MiB.
/// let store = MemoryStore::builder().max_entries(100_000).max_bytes(64 * 1024 * 1024).build();
/// assert_eq!(store.usage().bytes, 0);
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryStoreBuilder {
    max_entries: usize,
    max_bytes: usize,
}

impl MemoryStoreBuilder {
    /// Sets how many keys may have a claim or a record at once. Default: 1,000,000.
    pub fn max_entries(mut self, max_entries: usize) -> Self {
        self.max_entries = max_entries;
        self
    }

    /// Sets how many bytes the store may hold, as it counts them: 640 for each key, plus the size of each record. In addition, a store for
    /// a million keys takes up to 6 MB for its tables, which it makes as it is used. Default: 1 GiB.
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Builds the store.
    pub fn build(self) -> MemoryStore {
        let hasher = KeyHasher::random();
        let shards = (self.max_entries / KEYS_PER_SHARD).next_power_of_two().min(MAX_SHARDS);
        let shared = Arc::new(Shared {
            shards: (0..shards).map(|_| Shard::new(hasher)).collect(),
            hasher,
            quota: Arc::new(Quota::new(self.max_entries, self.max_bytes)),
            clock: OnceLock::new(),
            next_shard: AtomicUsize::new(0),
            revoked: Mutex::default(),
            janitor: Janitor::new(),
        });
        #[cfg(feature = "metrics")]
        metrics::enter(&shared);
        MemoryStore { inner: Arc::new(Inner { shared }) }
    }
}

impl Store for MemoryStore {
    type Claim = MemoryClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        let shared = &self.inner.shared;
        let shard = shared.shard(key);
        loop {
            let mut claims = shard.claims.lock();
            // Within the lock, so that of two requests the later one has the later time.
            let now = shared.clock().now();
            if let Some(slot) = claims.get_mut(key) {
                let abandoned = if slot.fingerprint() == fingerprint { slot.try_own() } else { None };
                return Ok(match abandoned {
                    Some(ownership) => {
                        Begin::Abandoned(MemoryClaim::new(shared, *key, Some(ownership), options.info.clone()))
                    }
                    None => Begin::InFlight(*slot.fingerprint()),
                });
            }
            if let Some(record) = shard.records.replay(key, fingerprint, now) {
                return Ok(Begin::Completed(record));
            }
            if let Some(permit) = shared.quota.admit() {
                let ownership = claims.insert(*key, *fingerprint, options.info.clone(), permit);
                drop(claims);
                shared.janitor.start(shared);
                return Ok(Begin::Claimed(MemoryClaim::new(shared, *key, ownership, None)));
            }
            // An expired record of this key, which moka hides, makes room as well.
            let hidden = shard.records.remove(key).is_some();
            drop(claims);
            // From the start again, since the key may have been claimed meanwhile. Ends if nothing is left to remove.
            if !hidden && shared.make_room(now, &mut shared.max_looked_at(1)) == 0 && shared.quota.is_full() {
                return Err(StoreError::Full);
            }
        }
    }

    async fn ended(&self, key: &StorageKey) {
        let ended = self.inner.shared.shard(key).claims.lock().get_mut(key).and_then(ClaimSlot::ended);
        if let Some(ended) = ended {
            ended.await;
        }
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let shared = &self.inner.shared;
        let shard = shared.shard(key);
        let mut claims = shard.claims.lock();
        if claims.contains(key) {
            let forgotten = claims.forget(key);
            drop(claims);
            return Ok(forgotten.map(ClaimSlot::wake).is_some());
        }
        let now = shared.clock().now();
        Ok(shard.records.remove(key).is_some_and(|recorded| now < recorded.expires_at))
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        let shared = &self.inner.shared;
        let shard = shared.shard(key);
        let mut claims = shard.claims.lock();
        if let Some(slot) = claims.get_mut(key) {
            return Ok(Some(slot.inspect()));
        }
        Ok(shard.records.inspect(key, shared.clock().now()))
    }

    /// A page has the keys of some shards.
    async fn inspect_unknown(&self, from: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, StoreError> {
        let shards = &self.inner.shared.shards;
        let first = from.and_then(|from| <[u8; 8]>::try_from(&from[..]).ok()).map_or(0, u64::from_be_bytes);
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let mut keys = Vec::new();
        for (index, shard) in shards.iter().enumerate().skip(first) {
            shard.claims.lock().abandoned(&mut keys);
            if keys.len() >= MAX_PAGE && index + 1 < shards.len() {
                return Ok(KeyPage::new(keys, Some(Bytes::copy_from_slice(&(index as u64 + 1).to_be_bytes()))));
            }
        }
        Ok(KeyPage::new(keys, None))
    }

    /// Until the owner that lost the claim has ended, both take room, if necessary beyond the limits: a store may be full of claims
    /// of executions that hang.
    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let shared = &self.inner.shared;
        let previous = shared.shard(key).claims.lock().revoke(key, || shared.quota.admit_beyond_limits());
        let is_revoked = previous.is_some();
        shared.revoked().extend(previous);
        Ok(is_revoked)
    }

    /// The store judges expiry itself, by the engine's clock, in the same step in which it grants a claim; and a claim
    /// lives exactly as long as its owner.
    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let first = self.inner.shared.clock.get_or_init(|| Arc::clone(clock));
        if !same_time(first, clock) {
            let used = if first.is_real_time() { "the system clock" } else { "the clock that it got first" };
            tracing::warn!(
                "this memory store already has another clock than the engine that is built now; its records expire by {used}; \
                 give all engines that share a store the same clock, before its first use"
            );
        }
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: true }
    }
}

/// Returns whether two clocks show the same time, as far as one look can say.
fn same_time(one: &Arc<dyn Clock>, other: &Arc<dyn Clock>) -> bool {
    let real_time = (one.is_real_time(), other.is_real_time());
    Arc::ptr_eq(one, other) || real_time == (true, true) || (real_time == (false, false) && one.now() == other.now())
}

#[cfg(test)]
mod tests;

//! The store in this process's memory.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use self::completed::{Expiries, Kept, Records};
use self::in_flight::{Found, Held, InFlight};
use self::permits::{Account, Permit};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Begin, Claim, Duties, Store, StoreError};

mod completed;
mod in_flight;
mod janitor;
mod permits;

/// How many shards a store has. Each has a lock and a small moka cache of its own.
const SHARDS: usize = 64;
/// How many expired records a request takes away in passing.
const IN_PASSING: usize = 4;
/// How many it takes away when the store is full.
const WHEN_FULL: usize = 64;

/// Claims and records in this process's memory: the fastest store, for services that run as one process. A restart
/// forgets everything.
///
/// It holds at most [`max_entries`](MemoryStoreBuilder::max_entries) keys and
/// [`max_bytes`](MemoryStoreBuilder::max_bytes) bytes. At the limit a new key is refused ([`StoreError::Full`]), existing
/// keys are still answered, and nothing live is dropped. An answer for whose bytes there is no room leaves a record that
/// says so, and its body does not run again. Memory of expired records is given back without traffic, too.
///
/// Clones share the contents.
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
    shards: Arc<Shards>,
    janitor: Arc<janitor::Stop>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.janitor.stop();
    }
}

/// Everything but the janitor's leash: claims and the janitor hold on to this.
struct Shards {
    all: Vec<Shard>,
    account: Arc<Account>,
    /// The engine's clock, from when the store is attached on.
    clock: OnceLock<Arc<dyn Clock>>,
    system_clock: SystemClock,
}

/// A part of the keys. A key is in flight or completed, and whoever holds the lock sees which:
/// [`MemoryClaim::complete`] puts the record in place first and only then, under the lock, takes the claim away.
struct Shard {
    state: Mutex<State>,
    records: Records,
    /// [`Expiries::soonest`], to be read without the lock.
    soonest: AtomicU64,
}

#[derive(Default)]
struct State {
    in_flight: InFlight,
    expiries: Expiries,
}

impl Shards {
    fn of(&self, key: &StorageKey) -> &Shard {
        // The key is a SHA-256, so any of its bytes spreads evenly.
        &self.all[usize::from(key.as_bytes()[31]) % SHARDS]
    }

    fn now(&self) -> Timestamp {
        self.clock.get().map_or_else(|| self.system_clock.now(), Clock::now)
    }

    /// Takes expired records away wherever they are, until there is room for a new key.
    fn make_room(&self, now: Timestamp) -> bool {
        self.all.iter().any(|shard| shard.soonest() <= now && shard.reclaim(now, WHEN_FULL) > 0)
    }
}

impl Shard {
    fn new() -> Self {
        Self { state: Mutex::default(), records: Records::new(), soonest: AtomicU64::new(Timestamp::NEVER.as_nanos()) }
    }

    /// The state is changed in single steps that cannot panic half-way, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn soonest(&self) -> Timestamp {
        Timestamp::from_nanos(self.soonest.load(Ordering::Acquire))
    }

    /// To be called by whoever changed the expiries, still under the lock.
    fn note_soonest(&self, state: &State) {
        self.soonest.store(state.expiries.soonest().as_nanos(), Ordering::Release);
    }

    /// Lets go of the lock, and makes moka give memory back where much was removed.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let untidy = state.expiries.is_untidy();
        drop(state);
        if untidy {
            self.records.tidy();
        }
    }

    fn reclaim(&self, now: Timestamp, most: usize) -> usize {
        let mut state = self.lock();
        let reclaimed = state.expiries.reclaim(&self.records, now, most);
        self.note_soonest(&state);
        self.unlock(state);
        reclaimed
    }
}

impl MemoryStore {
    /// A store with the default limits.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A store with limits of your own.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder { max_entries: 1_000_000, max_bytes: 1024 * 1024 * 1024 }
    }

    /// What the store holds now.
    pub fn usage(&self) -> Usage {
        let shards = &self.inner.shards;
        let (mut in_flight, mut completed) = (0, 0);
        for shard in &shards.all {
            let state = shard.lock();
            in_flight += state.in_flight.len();
            completed += state.expiries.len();
        }
        Usage { in_flight, completed, entries: shards.account.entries(), bytes: shards.account.bytes() }
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
    /// Claims, those without an owner included.
    pub in_flight: usize,
    /// Records that have not been taken away yet.
    pub completed: usize,
    /// Keys that count against the limit.
    pub entries: usize,
    /// Bytes that count against the limit: a fixed part for each key, and the answers.
    pub bytes: usize,
}

/// Sets the limits of a [`MemoryStore`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryStoreBuilder {
    max_entries: usize,
    max_bytes: usize,
}

impl MemoryStoreBuilder {
    /// The most keys, claims and records together. Default: 1,000,000.
    pub fn max_entries(mut self, max_entries: usize) -> Self {
        self.max_entries = max_entries;
        self
    }

    /// The most bytes, by the store's own account: 640 for each key and the size of each answer. Default: 1 GiB.
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Builds the store.
    pub fn build(self) -> MemoryStore {
        let shards = Arc::new(Shards {
            all: (0..SHARDS).map(|_| Shard::new()).collect(),
            account: Arc::new(Account::new(self.max_entries, self.max_bytes)),
            clock: OnceLock::new(),
            system_clock: SystemClock::new(),
        });
        let janitor = Arc::default();
        janitor::start(&shards, &janitor);
        MemoryStore { inner: Arc::new(Inner { shards, janitor }) }
    }
}

impl Store for MemoryStore {
    type Claim = MemoryClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        _lease: Duration,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        let shards = &self.inner.shards;
        let shard = shards.of(key);
        let now = shards.now();
        loop {
            let mut state = shard.lock();
            match state.in_flight.find(key) {
                Found::Running(other) => return Ok(Begin::InFlight(other)),
                Found::Abandoned(other) if other != *fingerprint => return Ok(Begin::InFlight(other)),
                Found::Abandoned(_) | Found::Nothing => {}
            }
            if let Some(permit) = state.in_flight.take_abandoned(key) {
                let claimed = state.in_flight.claim(*key, *fingerprint);
                return Ok(Begin::Abandoned(MemoryClaim::new(shards, *key, permit, claimed)));
            }
            if let Some(kept) = shard.records.get(key) {
                if now < kept.expires_at {
                    return Ok(Begin::Completed(kept.record));
                }
                state.expiries.remove(&shard.records, key);
            }
            state.expiries.reclaim(&shard.records, now, IN_PASSING);
            shard.note_soonest(&state);
            if let Some(permit) = shards.account.admit() {
                let claimed = state.in_flight.claim(*key, *fingerprint);
                shard.unlock(state);
                return Ok(Begin::Claimed(MemoryClaim::new(shards, *key, permit, claimed)));
            }
            drop(state);
            // From the start again, since the key may have been claimed meanwhile. Ends when nothing is left to take away.
            if !shards.make_room(now) {
                return Err(StoreError::Full);
            }
        }
    }

    async fn ended(&self, key: &StorageKey) {
        let ended = self.inner.shards.of(key).lock().in_flight.ended(key);
        if let Some(ended) = ended {
            drop(ended.lock().await);
        }
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let shard = self.inner.shards.of(key);
        let mut state = shard.lock();
        Ok(match state.in_flight.find(key) {
            Found::Running(_) => false,
            Found::Abandoned(_) => state.in_flight.take_abandoned(key).is_some(),
            Found::Nothing => {
                let forgotten = state.expiries.remove(&shard.records, key);
                shard.note_soonest(&state);
                shard.unlock(state);
                return Ok(forgotten);
            }
        })
    }

    /// The store judges expiry itself, by the engine's clock, in the same step in which it grants a claim; and a claim
    /// lives exactly as long as its owner.
    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        let _ = self.inner.shards.clock.set(Arc::clone(clock));
        Duties::NONE
    }
}

/// A claim in a [`MemoryStore`]. Dropped without an end, it leaves the key abandoned at once.
pub struct MemoryClaim {
    shards: Arc<Shards>,
    key: StorageKey,
    owner: u64,
    /// Gone when the claim has ended.
    permit: Option<Permit>,
    /// Wakes the waiters when it goes, which is after the slot has changed.
    _held: Option<Held>,
}

impl MemoryClaim {
    fn new(shards: &Arc<Shards>, key: StorageKey, permit: Permit, (owner, held): (u64, Option<Held>)) -> Self {
        Self { shards: Arc::clone(shards), key, owner, permit: Some(permit), _held: held }
    }
}

impl Claim for MemoryClaim {
    async fn renew(&mut self, _lease: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    async fn complete(mut self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let mut permit = self.permit.take().ok_or(StoreError::Lost)?;
        let record = if permit.grow(record.bytes().len()) { record } else { record.tombstone() };
        let shard = self.shards.of(&self.key);
        let expires_at = self.shards.now().after(ttl);
        shard.records.insert(self.key, Kept { record, expires_at });
        let mut state = shard.lock();
        state.in_flight.end(&self.key, self.owner);
        state.expiries.insert(self.key, expires_at, permit);
        shard.note_soonest(&state);
        Ok(())
    }

    async fn release(mut self) -> Result<(), StoreError> {
        self.shards.of(&self.key).lock().in_flight.end(&self.key, self.owner);
        self.permit = None;
        Ok(())
    }
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.shards.of(&self.key).lock().in_flight.abandon(&self.key, self.owner, permit);
        }
    }
}

impl fmt::Debug for MemoryClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryClaim").field("key", &self.key).finish()
    }
}

#[cfg(test)]
mod tests;

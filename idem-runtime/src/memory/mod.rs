//! The store in this process's memory.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use self::permits::Account;
use self::shard::{Found, Shard};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::origin::Origin;
use crate::record::Record;
use crate::store::{self, Begin, Claim, Duties, Store, StoreError, Terms};

mod in_flight;
mod janitor;
#[cfg(feature = "metrics")]
mod levels;
mod permits;
mod shard;

/// How many shards a store has, each with a lock of its own. Many, since a table that grows is moved under its lock.
const SHARDS: usize = 256;
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
            let (claims, records) = shard.lock().len();
            in_flight += claims;
            completed += records;
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
///
/// ```
/// use idem_runtime::MemoryStore;
///
/// // At 384 bytes for each key, the entries alone take 36.6 MiB of the bytes.
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
    /// The most keys, claims and records together. Default: 1,000,000.
    pub fn max_entries(mut self, max_entries: usize) -> Self {
        self.max_entries = max_entries;
        self
    }

    /// The most bytes, by the store's own account: 384 for each key and the size of each answer. Default: 1 GiB.
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
        #[cfg(feature = "metrics")]
        levels::enter(&shards);
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
        lease: Duration,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        self.begin_on_terms(key, fingerprint, &Terms::new(lease, Duration::MAX)).await
    }

    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        let shards = &self.inner.shards;
        let shard = shards.of(key);
        loop {
            let mut gone = Vec::new();
            let mut state = shard.lock();
            // Within the lock, so that of two requests the later one has the later time.
            let now = shards.now();
            if shard.soonest() <= now {
                state.reclaim(now, IN_PASSING, &mut gone);
                shard.note_soonest(&state);
            }
            let origin = || terms.origin_at(now);
            let found = state.begin(key, fingerprint, now, &shards.account, origin);
            drop(state);
            return Ok(match found {
                Found::Claimed(owner) => Begin::Claimed(MemoryClaim::new(shards, *key, owner)),
                Found::Abandoned(owner) => {
                    let mut claim = MemoryClaim::new(shards, *key, owner);
                    claim.heir = origin().map(Box::new);
                    Begin::Abandoned(claim)
                }
                Found::InFlight(fingerprint) => Begin::InFlight(fingerprint),
                Found::Completed(record) => Begin::Completed(record),
                // From the start again, since the key may have been claimed meanwhile. Ends when nothing is left to take
                // away.
                Found::Full if shards.make_room(now) => continue,
                Found::Full => return Err(StoreError::Full),
            });
        }
    }

    async fn ended(&self, key: &StorageKey) {
        let ended = self.inner.shards.of(key).lock().ended(key);
        if let Some(ended) = ended {
            drop(ended.lock().await);
        }
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let shard = self.inner.shards.of(key);
        let mut state = shard.lock();
        let gone = state.forget(key);
        shard.note_soonest(&state);
        drop(state);
        Ok(gone.is_some())
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<store::Found>, StoreError> {
        let shards = &self.inner.shards;
        let state = shards.of(key).lock();
        Ok(state.inspect(key, shards.now()))
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
    /// The origin of the execution that may take the claim over, until it does.
    heir: Option<Box<Origin>>,
    ended: bool,
}

impl MemoryClaim {
    fn new(shards: &Arc<Shards>, key: StorageKey, owner: u64) -> Self {
        Self { shards: Arc::clone(shards), key, owner, heir: None, ended: false }
    }
}

impl Claim for MemoryClaim {
    async fn renew(&mut self, _lease: Duration) -> Result<(), StoreError> {
        if let Some(origin) = self.heir.take() {
            self.shards.of(&self.key).lock().inherit(&self.key, self.owner, origin);
        }
        Ok(())
    }

    async fn complete(mut self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.ended = true;
        let shard = self.shards.of(&self.key);
        let mut state = shard.lock();
        let expires_at = self.shards.now().after(ttl);
        let ended = state.complete(&self.key, self.owner, record, expires_at);
        shard.note_soonest(&state);
        // Before the waiters wake, who go when `ended` does.
        drop(state);
        ended.map(drop).ok_or(StoreError::Lost)
    }

    async fn release(mut self) -> Result<(), StoreError> {
        self.ended = true;
        let ended = self.shards.of(&self.key).lock().release(&self.key, self.owner);
        ended.map(drop).ok_or(StoreError::Lost)
    }
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        if !self.ended {
            let ended = self.shards.of(&self.key).lock().abandon(&self.key, self.owner);
            drop(ended);
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

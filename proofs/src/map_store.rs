//! A plain store with leases, as a remote one has them: a map under one lock. Sound as it is, with a fault on demand.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Record, StorageKey, Store, StoreCapabilities, StoreError,
    SystemClock, Timestamp,
};

use crate::faulty::Fault;

/// A store in a map, whose claims live for their lease.
#[derive(Clone)]
pub struct MapStore(Arc<Shared>);

struct Shared {
    map: Mutex<Map>,
    clock: OnceLock<Arc<dyn Clock>>,
    system_clock: SystemClock,
    capacity: usize,
    fault: Option<Fault>,
}

#[derive(Default)]
struct Map {
    entries: HashMap<StorageKey, Entry>,
    last_owner: u64,
}

#[derive(Clone)]
struct Entry {
    fingerprint: Fingerprint,
    owner: u64,
    /// `None` while the claim has not been completed.
    record: Option<Record>,
    /// The end of the lease, or of the record.
    until: Timestamp,
}

/// A claim in a [`MapStore`].
pub struct MapClaim {
    store: MapStore,
    key: StorageKey,
    owner: u64,
    lease: Duration,
    /// The owner that left the claim and the end of its lease, while this one has not taken it over.
    former: Option<(u64, Timestamp)>,
    /// Whether its owner has released it. Shared by clones.
    released: Arc<AtomicBool>,
}

impl MapStore {
    /// A store for `capacity` keys.
    pub fn new(capacity: usize, fault: Option<Fault>) -> Self {
        let (clock, system_clock) = (OnceLock::new(), SystemClock::new());
        Self(Arc::new(Shared { map: Mutex::default(), clock, system_clock, capacity, fault }))
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.0.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.0.clock.get().map_or_else(|| self.0.system_clock.now(), Clock::now)
    }

    fn has(&self, fault: Fault) -> bool {
        self.0.fault == Some(fault)
    }

    /// Whether this entry is empty.
    fn is_empty(&self, entry: &Entry, now: Timestamp) -> bool {
        match &entry.record {
            None => self.has(Fault::ClaimVanishesWithLease) && entry.until <= now,
            Some(record) if self.has(Fault::UnreadableIsAMiss) && record.bytes().first() != Some(&1) => true,
            Some(_) => !self.has(Fault::ReportsExpired) && entry.until <= now,
        }
    }

    fn claim(&self, key: StorageKey, owner: u64, lease: Duration, former: Option<(u64, Timestamp)>) -> MapClaim {
        MapClaim { store: self.clone(), key, owner, lease, former, released: Arc::default() }
    }

    /// Makes room for one more key, if it can be had.
    fn has_room(&self, map: &mut Map, now: Timestamp) -> bool {
        if map.entries.len() >= self.0.capacity {
            map.entries.retain(|_, entry| !self.is_empty(entry, now));
        }
        if map.entries.len() >= self.0.capacity && self.has(Fault::EvictsTheOldest) {
            let oldest = map.entries.iter().min_by_key(|(_, entry)| entry.owner).map(|(key, _)| *key);
            oldest.and_then(|key| map.entries.remove(&key));
        }
        map.entries.len() < self.0.capacity
    }
}

impl Store for MapStore {
    type Claim = MapClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MapClaim>, StoreError> {
        if self.has(Fault::CheckThenAct) && !self.lock().entries.contains_key(key) {
            // Free, it found, and acts on that later.
            tokio::task::yield_now().await;
            self.lock().entries.remove(key);
        }
        let (now, lease) = (self.now(), options.lease);
        let mut map = self.lock();
        map.last_owner += 1;
        let me = map.last_owner;
        if let Place::Occupied(place) = map.entries.entry(*key) {
            let entry = place.get();
            if self.is_empty(entry, now) {
                place.remove();
            } else if let Some(record) = &entry.record {
                return Ok(Begin::Completed(record.clone()));
            } else if now < entry.until || (entry.fingerprint != *fingerprint && !self.has(Fault::AbandonedForAll)) {
                return Ok(Begin::InFlight(entry.fingerprint));
            } else {
                return Ok(Begin::Abandoned(self.claim(*key, me, lease, Some((entry.owner, entry.until)))));
            }
        }
        if !self.has_room(&mut map, now) {
            return Err(StoreError::Full);
        }
        let until = now.after(if self.has(Fault::ClaimOutlivesLease) { lease * 1000 } else { lease });
        map.entries.insert(*key, Entry { fingerprint: *fingerprint, owner: me, record: None, until });
        Ok(Begin::Claimed(self.claim(*key, me, lease, None)))
    }

    async fn ended(&self, _: &StorageKey) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let now = self.now();
        let mut map = self.lock();
        let running = map.entries.get(key).is_some_and(|entry| entry.record.is_none() && now < entry.until);
        Ok(!running && map.entries.remove(key).is_some())
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = self.0.clock.set(Arc::clone(clock));
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: false }
    }
}

impl MapClaim {
    /// Changes the entry if it is as `expected`: a compare-and-set. The entry is removed if `change` leaves nothing.
    fn change(
        &self,
        expected: impl FnOnce(&Entry) -> bool,
        change: impl FnOnce(Entry) -> Option<Entry>,
    ) -> Result<(), StoreError> {
        let mut map = self.store.lock();
        let Place::Occupied(mut place) = map.entries.entry(self.key) else { return Err(StoreError::Lost) };
        if !expected(place.get()) && !self.store.has(Fault::NoOwnerToken) {
            return Err(StoreError::Lost);
        }
        match change(place.get().clone()) {
            Some(entry) => drop(place.insert(entry)),
            None => drop(place.remove()),
        }
        Ok(())
    }
}

impl Claim for MapClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let (me, until) = (self.owner, self.store.now().after(lease));
        let expected = |entry: &Entry| match self.former {
            // Its owner may have renewed it since.
            Some(former) => (entry.owner, entry.until) == former,
            None => entry.owner == me && entry.record.is_none(),
        };
        self.change(expected, |entry| Some(Entry { owner: me, until, ..entry }))?;
        self.former = None;
        Ok(())
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let lives = if self.store.has(Fault::RecordDiesWithLease) { self.lease } else { ttl };
        let until = self.store.now().after(lives);
        if self.store.has(Fault::RecordsUnderAFreeKey) {
            let (fingerprint, owner) = (*record.fingerprint(), self.owner);
            let entry = Entry { fingerprint, owner, record: None, until };
            self.store.lock().entries.entry(self.key).or_insert(entry);
        }
        self.change(
            |entry| entry.owner == self.owner,
            |entry| {
                // Repeated by the same owner, it gets the same reply and changes nothing.
                let repeated = entry.record.is_some() && entry.owner == self.owner;
                Some(if repeated { entry } else { Entry { record: Some(record), until, ..entry } })
            },
        )
    }

    async fn release(self) -> Result<(), StoreError> {
        if self.released.load(Ordering::SeqCst) && !self.store.has(Fault::RepeatedReleaseIsLost) {
            return Ok(());
        }
        self.change(|entry| entry.owner == self.owner && entry.record.is_none(), |_| None)?;
        self.released.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn try_clone(&self) -> Option<Self> {
        let released = Arc::clone(&self.released);
        Some(Self { released, ..self.store.claim(self.key, self.owner, self.lease, self.former) })
    }
}

impl fmt::Debug for MapStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapStore").field("fault", &self.0.fault).finish_non_exhaustive()
    }
}

impl fmt::Debug for MapClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapClaim").field("key", &self.key).field("owner", &self.owner).finish_non_exhaustive()
    }
}

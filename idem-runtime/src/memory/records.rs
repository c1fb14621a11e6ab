//! A part of the records, in a moka cache. moka reclaims the memory of expired records; whether a record has expired is
//! decided here, by the engine's clock.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::quota::QuotaPermit;
use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{KeyState, StoredEntry};
use crate::sync::{Cache, Expiry, Mutex, MutexGuard, RandomState};

/// How long moka keeps a record after it has expired. Until then the store can still find it, and removes it itself if it
/// needs the room: moka hides what has expired, and removes it up to [`TICK`] later.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long after its time moka removes an entry at the latest, once its pending tasks run: a step of its timer wheel.
const TICK: Duration = Duration::from_nanos(1 << 30);
/// moka removes all entries of a cache that are due in one call. So the times at which records that expire together are due
/// are spread over this time, or over their TTL if that is shorter.
const SPREAD: Duration = Duration::from_secs(16);
/// After how long moka has removed an expired record at the latest.
const RECLAIMED_AFTER: Duration = GRACE.saturating_add(SPREAD).saturating_add(TICK);
/// With a capacity, however small, moka's tables of a cache begin with 1,024 places in all. Without one they begin with 8,192.
const INITIAL_CAPACITY: usize = 1;
/// Records with a longer TTL are never reclaimed by moka, which panics if a time is longer than a thousand years.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A part of the records.
pub(super) struct Records {
    /// Made for the first record, since an empty cache takes 31 KB.
    cache: OnceLock<Cache<StorageKey, Arc<Entry>, KeyHasher>>,
    hasher: KeyHasher,
    bound: Mutex<Bound>,
    sweeping: Mutex<()>,
}

/// When records expire at the earliest.
struct Bound {
    /// No record expires before this time.
    all: Timestamp,
    /// The same for those that were inserted since the last sweep began.
    inserted: Timestamp,
}

/// What the cache holds. The store empties it when it removes the record itself, because moka drops what was removed late.
pub(super) struct Entry {
    recorded: Mutex<Option<Recorded>>,
    /// When moka removes the entry, counted from its insertion.
    reclaim_after: Option<Duration>,
}

/// A record, with its part of the quota.
pub(super) struct Recorded {
    pub(super) record: Record,
    pub(super) expires_at: Timestamp,
    pub(super) replays: u64,
    pub(super) _permit: QuotaPermit,
}

/// What a sweep did.
#[derive(Clone, Copy, Default)]
pub(super) struct Swept {
    pub(super) removed: usize,
    pub(super) looked_at: usize,
}

impl Records {
    pub(super) fn new(hasher: KeyHasher) -> Self {
        let bound = Mutex::new(Bound { all: Timestamp::NEVER, inserted: Timestamp::NEVER });
        Self { cache: OnceLock::new(), hasher, bound, sweeping: Mutex::default() }
    }

    /// Adds a record that lives for `ttl`. The caller holds the claim of `key`, so no other call inserts one. moka gets the TTL
    /// only if the engine's clock is `real_time`: its own is.
    pub(super) fn insert(&self, key: StorageKey, recorded: Recorded, ttl: Duration, real_time: bool) {
        let expires_at = recorded.expires_at;
        let reclaim_after = (real_time && ttl <= MAX_TTL).then(|| ttl + GRACE + self.share(&key, ttl.min(SPREAD)));
        let cache = self.cache.get_or_init(|| {
            Cache::builder()
                .name("idem")
                .initial_capacity(INITIAL_CAPACITY)
                .expire_after(ReclaimAfter)
                .build_with_hasher(self.hasher)
        });
        // moka could remove the new record instead of an expired one that it has not removed yet, if it looks at the old one's
        // time while the value is replaced. So a value is never replaced, and needs no time for that.
        drop(self.remove(&key));
        cache.insert(key, Arc::new(Entry { recorded: Mutex::new(Some(recorded)), reclaim_after }));
        // After the insertion: a sweep that begins later sees the record, and one that began earlier gets its time.
        self.note(expires_at);
    }

    fn note(&self, expires_at: Timestamp) {
        let mut bound = self.bound();
        bound.all = bound.all.min(expires_at);
        bound.inserted = bound.inserted.min(expires_at);
    }

    /// Returns the record if it is live, and counts a replay if it is one of a request with `fingerprint`. Removes it if it has
    /// expired. The caller holds the lock of the claims.
    pub(super) fn replay(&self, key: &StorageKey, fingerprint: &Fingerprint, now: Timestamp) -> Option<Record> {
        let entry = self.get(key)?;
        let mut slot = entry.lock();
        match &mut *slot {
            Some(recorded) if now < recorded.expires_at => {
                recorded.replays += u64::from(recorded.record.fingerprint() == fingerprint);
                return Some(recorded.record.clone());
            }
            expired => drop(expired.take()),
        }
        drop(slot);
        self.remove(key);
        None
    }

    /// Returns what is known of a live record.
    pub(super) fn inspect(&self, key: &StorageKey, now: Timestamp) -> Option<StoredEntry> {
        let entry = self.get(key)?;
        let slot = entry.lock();
        let recorded = slot.as_ref().filter(|recorded| now < recorded.expires_at)?;
        let mut found = StoredEntry::new(KeyState::Completed(recorded.record.clone()));
        found.expires_at = Some(recorded.expires_at);
        found.replays = Some(recorded.replays);
        Some(found)
    }

    /// Removes the record under `key`, also one that moka hides because it has expired.
    pub(super) fn remove(&self, key: &StorageKey) -> Option<Recorded> {
        let entry = self.cache.get()?.remove(key)?;
        entry.lock().take()
    }

    /// Removes up to `max` expired records, and looks at up to `look` records for it. `lock` gives the lock of the claims.
    ///
    /// One sweep at a time: a request that needs room waits for a sweep that is about to make it.
    pub(super) fn sweep<G>(&self, now: Timestamp, max: usize, look: usize, lock: impl Fn() -> G) -> Swept {
        let mut swept = Swept::default();
        let Some(cache) = self.cache.get() else { return swept };
        let _sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.begin_sweep();
        let mut earliest = Timestamp::NEVER;
        for (key, entry) in cache.iter() {
            if swept.looked_at == look {
                // What was not looked at may have expired.
                earliest = earliest.min(all);
                break;
            }
            swept.looked_at += 1;
            match entry.expires_at() {
                Some(expires_at) if expires_at <= now && swept.removed == max => {
                    earliest = expires_at;
                    break;
                }
                Some(expires_at) if expires_at <= now => {
                    // Under the lock the record cannot be replaced between the second look and the removal.
                    let locked = lock();
                    let expired = self.remove_expired(&key, now);
                    drop(locked);
                    swept.removed += usize::from(expired.is_some());
                }
                Some(expires_at) => earliest = earliest.min(expires_at),
                None => {}
            }
        }
        // Only now, since until now a request could have found room here.
        let mut bound = self.bound();
        bound.all = earliest.min(bound.inserted);
        swept
    }

    /// Returns the bound of all records, from now on without those that are inserted while a sweep looks.
    fn begin_sweep(&self) -> Timestamp {
        let mut bound = self.bound();
        bound.inserted = Timestamp::NEVER;
        bound.all
    }

    /// Returns a time before which no record expires.
    pub(super) fn earliest(&self) -> Timestamp {
        self.bound().all
    }

    /// Lets moka remove what has expired by its clock, and drop what was removed.
    pub(super) fn run_pending_tasks(&self, now: Timestamp, real_time: bool) {
        let Some(cache) = self.cache.get() else { return };
        cache.run_pending_tasks();
        if real_time {
            let epoch = Timestamp::from_nanos(0);
            let reclaimed = epoch.after(now.since(epoch).saturating_sub(RECLAIMED_AFTER));
            let mut bound = self.bound();
            bound.all = bound.all.max(reclaimed);
        }
    }

    /// Returns a part of `time` that is the same for a key, and evenly spread over keys.
    fn share(&self, key: &StorageKey, time: Duration) -> Duration {
        let [share, ..] = self.hasher.hash_one(key).to_le_bytes();
        time * u32::from(share) / 256
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_expired(&self, key: &StorageKey, now: Timestamp) -> Option<Recorded> {
        let expires_at = self.get(key)?.expires_at()?;
        if expires_at <= now { self.remove(key) } else { None }
    }

    /// Returns when moka removes the entry, counted from its insertion. `None` if it has none, or hides it.
    #[cfg(test)]
    pub(super) fn reclaim_after(&self, key: &StorageKey) -> Option<Option<Duration>> {
        self.get(key).map(|entry| entry.reclaim_after)
    }

    fn get(&self, key: &StorageKey) -> Option<Arc<Entry>> {
        self.cache.get()?.get(key)
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Option<Recorded>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.lock().as_ref().map(|recorded| recorded.expires_at)
    }
}

/// Gives moka each entry's own time.
struct ReclaimAfter;

impl Expiry<StorageKey, Arc<Entry>> for ReclaimAfter {
    fn expire_after_create(&self, _: &StorageKey, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        entry.reclaim_after
    }
}

/// Hashes the sixteen bytes that [`StorageKey`] writes, by one multiplication with two random words. A storage key is an unsalted
/// hash of what a client sent, so without the random words keys that collide could be searched for.
#[derive(Clone, Copy)]
pub(super) struct KeyHasher([u64; 2]);

impl KeyHasher {
    pub(super) fn random() -> Self {
        let random = RandomState::new();
        Self([random.hash_one(0), random.hash_one(1)])
    }
}

impl BuildHasher for KeyHasher {
    type Hasher = FoldedHash;

    fn build_hasher(&self) -> FoldedHash {
        FoldedHash { random: self.0, hash: 0 }
    }
}

pub(super) struct FoldedHash {
    random: [u64; 2],
    hash: u64,
}

impl Hasher for FoldedHash {
    fn write_u128(&mut self, word: u128) {
        let [high, low] = halves(word);
        let product = u128::from(self.hash ^ high ^ self.random[0]) * u128::from(low ^ self.random[1]);
        let [high, low] = halves(product);
        self.hash = high ^ low;
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(16) {
            let mut word = [0; 16];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u128(u128::from_le_bytes(word));
        }
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
const fn halves(word: u128) -> [u64; 2] {
    [(word >> 64) as u64, word as u64]
}

/// How long an expired record has been waiting to be removed, beyond the time that moka takes.
#[cfg(feature = "metrics")]
pub(super) fn lag(earliest: Timestamp, now: Timestamp) -> Duration {
    now.since(earliest).saturating_sub(RECLAIMED_AFTER)
}

#[cfg(test)]
mod tests {
    use super::super::quota::Quota;
    use super::*;
    use crate::record::RecordBuilder;

    const TTL: Duration = Duration::from_secs(60);

    fn key(number: u8) -> StorageKey {
        StorageKey::from_bytes([number; 32])
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(0).after(Duration::from_secs(seconds))
    }

    fn insert(records: &Records, number: u8, expires_at: Timestamp) {
        let record = Record::with_content(Fingerprint::from_bytes([7; 32]), RecordBuilder::new(), expires_at, None);
        let permit = Arc::new(Quota::new(1, usize::MAX)).admit().expect("there is room");
        records.insert(key(number), Recorded { record, expires_at, replays: 0, _permit: permit }, TTL, true);
    }

    #[test]
    fn a_sweep_remembers_when_the_next_record_expires() {
        let records = Records::new(KeyHasher::random());
        insert(&records, 1, at(1));
        insert(&records, 2, at(2));
        assert_eq!(records.earliest(), at(1));
        let Swept { removed, looked_at } = records.sweep(at(1), 8, 8, || ());
        assert_eq!((removed, looked_at, records.earliest()), (1, 2, at(2)));
        let Swept { removed, looked_at } = records.sweep(at(2), 8, 8, || ());
        assert_eq!((removed, looked_at, records.earliest()), (1, 1, Timestamp::NEVER));
    }

    #[test]
    fn records_that_expire_together_are_not_reclaimed_together() {
        let records = Records::new(KeyHasher::random());
        let times: std::collections::BTreeSet<_> = (0..100)
            .map(|number| {
                insert(&records, number, at(60));
                records.reclaim_after(&key(number)).flatten().expect("moka has a time")
            })
            .collect();
        assert!(times.len() > 10, "{times:?}");
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn the_lag_is_what_a_record_waits_beyond_the_time_that_moka_takes() {
        assert_eq!(lag(at(1), at(1).after(RECLAIMED_AFTER)), Duration::ZERO);
        assert_eq!(lag(at(1), at(6).after(RECLAIMED_AFTER)), Duration::from_secs(5));
    }
}

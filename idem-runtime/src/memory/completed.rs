//! The second place: records, in a moka cache, with their expiries beside them.
//!
//! moka keeps the records; it does not decide when they go. Its own expiry runs on its own clock, frees nothing until
//! somebody calls, and then frees everything at once inside that call (up to seconds after a million entries expired in
//! silence). So each shard keeps an ordered list of its expiries, by the engine's clock, and takes a few off at a time.
//! With no `max_capacity` moka evicts nothing.

use std::collections::BTreeMap;

use moka::sync::Cache;

use super::permits::Permit;
use crate::clock::Timestamp;
use crate::key::StorageKey;
use crate::record::Record;

/// A record and when it is over.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) record: Record,
    pub(super) expires_at: Timestamp,
}

/// The records of one shard. May be read and written without the shard's lock.
pub(super) struct Records(Cache<StorageKey, Kept>);

impl Records {
    pub(super) fn new() -> Self {
        Self(Cache::builder().build())
    }

    pub(super) fn get(&self, key: &StorageKey) -> Option<Kept> {
        self.0.get(key)
    }

    pub(super) fn insert(&self, key: StorageKey, kept: Kept) {
        self.0.insert(key, kept);
    }

    /// Makes moka give back the memory of what was removed.
    pub(super) fn tidy(&self) {
        self.0.run_pending_tasks();
    }
}

/// moka gives memory back some time after a record was removed. When this many bytes wait for that, it is made to.
const UNTIDY: usize = 256 * 1024;

/// When the records of one shard are over, soonest first, each with the permit it holds: a record is alive for as long as
/// it stands here. Kept under the shard's lock.
#[derive(Default)]
pub(super) struct Expiries {
    alive: BTreeMap<(Timestamp, StorageKey), Permit>,
    /// The bytes of what was removed and is perhaps still in memory.
    removed: usize,
}

impl Expiries {
    pub(super) fn insert(&mut self, key: StorageKey, expires_at: Timestamp, permit: Permit) {
        self.alive.insert((expires_at, key), permit);
    }

    /// Removes a record from both, and says whether it was there.
    pub(super) fn remove(&mut self, records: &Records, key: &StorageKey) -> bool {
        let Some(kept) = records.0.remove(key) else { return false };
        let permit = self.alive.remove(&(kept.expires_at, *key));
        self.removed += permit.as_ref().map_or(0, Permit::bytes);
        permit.is_some()
    }

    /// Removes up to `most` records that are over at `now`, and says how many went.
    ///
    /// A key that has a new claim is not among them: `begin` removes the old record before it grants the claim, so
    /// this never touches the record that the claim will leave behind.
    pub(super) fn reclaim(&mut self, records: &Records, now: Timestamp, most: usize) -> usize {
        let mut reclaimed = 0;
        while reclaimed < most {
            let Some(first) = self.alive.first_entry() else { break };
            let (expires_at, key) = *first.key();
            if now < expires_at {
                break;
            }
            self.removed += first.remove().bytes();
            records.0.invalidate(&key);
            reclaimed += 1;
        }
        reclaimed
    }

    /// Whether memory should be given back before anything else is done; `true` once for what was removed.
    pub(super) fn is_untidy(&mut self) -> bool {
        let untidy = self.removed > UNTIDY;
        if untidy {
            self.removed = 0;
        }
        untidy
    }

    /// Whether any memory waits to be given back; `true` once for what was removed.
    pub(super) fn is_any_removed(&mut self) -> bool {
        std::mem::take(&mut self.removed) > 0
    }

    pub(super) fn soonest(&self) -> Timestamp {
        self.alive.first_key_value().map_or(Timestamp::NEVER, |((expires_at, _), _)| *expires_at)
    }

    pub(super) fn len(&self) -> usize {
        self.alive.len()
    }
}

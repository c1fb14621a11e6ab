//! A part of the claims. A claim never expires and is never evicted: it stays until it is completed, released or forgotten.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::quota::QuotaPermit;
use super::records::KeyHasher;
use super::{Shard, Shared};
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::record::Record;
use crate::store::{Claim, KeyState, StoredEntry};
use crate::sync::{AsyncMutex, Mutex, MutexGuard, Notify, OwnedMutexGuard, OwnedNotified};

/// Tables smaller than this are not worth shrinking.
const SMALL: usize = 64;

/// The keys that are claimed. A key has a claim or a record, and both only while `complete` replaces one by the other.
pub(super) struct Claims(Mutex<HashMap<StorageKey, ClaimSlot, KeyHasher>>);

/// A claim. Its owner holds the mutex as long as it lives, so the mutex is free if the owner disappeared. It is only tried
/// under the lock of [`Claims`].
pub(super) struct ClaimSlot {
    fingerprint: Fingerprint,
    info: Option<ExecutionInfo>,
    owner: Arc<AsyncMutex<Option<QuotaPermit>>>,
    /// Made for the first request that waits for the end of the claim.
    waiters: Option<Arc<Notify>>,
}

/// The ownership of a claim, with its part of the quota until that moves to a record.
pub(super) type Ownership = OwnedMutexGuard<Option<QuotaPermit>>;

/// An owner whose claim was revoked.
pub(super) struct PreviousOwner(Weak<AsyncMutex<Option<QuotaPermit>>>);

impl PreviousOwner {
    pub(super) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Claims {
    pub(super) fn new(hasher: KeyHasher) -> Self {
        Self(Mutex::new(HashMap::with_hasher(hasher)))
    }

    /// The map is changed in single steps that cannot panic half-way, so a poisoned lock is as good as any.
    pub(super) fn lock(&self) -> LockedClaims<'_> {
        LockedClaims(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The claims, locked.
pub(super) struct LockedClaims<'a>(MutexGuard<'a, HashMap<StorageKey, ClaimSlot, KeyHasher>>);

impl LockedClaims<'_> {
    pub(super) fn get_mut(&mut self, key: &StorageKey) -> Option<&mut ClaimSlot> {
        self.0.get_mut(key)
    }

    pub(super) fn contains(&self, key: &StorageKey) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Claims a key that is free.
    pub(super) fn insert(
        &mut self,
        key: StorageKey,
        fingerprint: Fingerprint,
        info: Option<ExecutionInfo>,
        permit: QuotaPermit,
    ) -> Option<Ownership> {
        let owner = Arc::new(AsyncMutex::new(Some(permit)));
        let ownership = Arc::clone(&owner).try_lock_owned().ok();
        self.0.insert(key, ClaimSlot { fingerprint, info, owner, waiters: None });
        ownership
    }

    /// Removes the claim if its owner disappeared. The caller [wakes](ClaimSlot::wake) the waiters: the previous owner may not
    /// have done so yet.
    pub(super) fn forget(&mut self, key: &StorageKey) -> Option<ClaimSlot> {
        self.0.get(key)?.try_own()?;
        self.remove(key)
    }

    /// Gives the claim a new owner, who has disappeared, with `permit` for its part of the quota. Returns its owner, if that was alive.
    pub(super) fn revoke(&mut self, key: &StorageKey, permit: impl FnOnce() -> QuotaPermit) -> Option<PreviousOwner> {
        let slot = self.0.get_mut(key).filter(|slot| !slot.is_abandoned())?;
        let previous = Arc::downgrade(&slot.owner);
        slot.owner = Arc::new(AsyncMutex::new(Some(permit())));
        wake(slot.waiters.take());
        Some(PreviousOwner(previous))
    }

    /// Adds keys whose owner disappeared.
    pub(super) fn abandoned(&self, keys: &mut Vec<(StorageKey, StoredEntry)>) {
        let abandoned = self.0.iter().filter(|(_, slot)| slot.is_abandoned());
        keys.extend(abandoned.map(|(key, slot)| (*key, slot.inspect())));
    }

    /// Returns whether the claim is that of this owner. It is not if the claim was revoked.
    fn is_owned_by(&self, key: &StorageKey, ownership: &Ownership) -> bool {
        self.0.get(key).is_some_and(|slot| Arc::ptr_eq(&slot.owner, OwnedMutexGuard::mutex(ownership)))
    }

    /// Removes a claim that the caller owns, and whose waiters it [wakes](ClaimSlot::wake).
    fn remove(&mut self, key: &StorageKey) -> Option<ClaimSlot> {
        let slot = self.0.remove(key);
        // Many claims at once leave a large empty table behind, which is shrunk when little of it is in use.
        if self.0.capacity() > SMALL && self.0.len() * 8 < self.0.capacity() {
            let len = self.0.len();
            self.0.shrink_to(len * 2);
        }
        slot
    }
}

impl ClaimSlot {
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Returns the ownership if the owner disappeared.
    pub(super) fn try_own(&self) -> Option<Ownership> {
        Arc::clone(&self.owner).try_lock_owned().ok()
    }

    fn is_abandoned(&self) -> bool {
        self.owner.try_lock().is_ok()
    }

    /// Returns what resolves when the claim may have ended. `None` if it has no owner who could end it.
    pub(super) fn ended(&mut self) -> Option<OwnedNotified> {
        if self.is_abandoned() {
            return None;
        }
        // It is notified also if that happens before it is polled.
        Some(Arc::clone(self.waiters.get_or_insert_default()).notified_owned())
    }

    /// Wakes those who wait for the end of a claim that was removed.
    pub(super) fn wake(self) {
        let Self { owner, waiters, .. } = self;
        // The permit first, if it is still there, so that a waiter finds room.
        drop(owner);
        wake(waiters);
    }

    pub(super) fn inspect(&self) -> StoredEntry {
        let state = if self.is_abandoned() { KeyState::Abandoned } else { KeyState::InFlight };
        let mut found = StoredEntry::new(state(self.fingerprint));
        found.info = self.info.clone();
        found
    }
}

/// A claim in a [`MemoryStore`](super::MemoryStore). Dropped without an end, it leaves the key abandoned at once.
pub struct MemoryClaim {
    shared: Arc<Shared>,
    key: StorageKey,
    /// `None` once the claim has ended.
    ownership: Option<Ownership>,
    /// What is known of the execution that may take over an abandoned claim, until it does.
    new_info: Option<ExecutionInfo>,
}

impl MemoryClaim {
    /// `new_info` is that of an execution which has not taken the claim over yet.
    pub(super) fn new(
        shared: &Arc<Shared>,
        key: StorageKey,
        ownership: Option<Ownership>,
        new_info: Option<ExecutionInfo>,
    ) -> Self {
        Self { shared: Arc::clone(shared), key, ownership, new_info }
    }

    /// Removes the claim, does `first` in the same step, and wakes those who wait for its end. Nothing is done if the claim was
    /// revoked.
    fn end(&mut self, first: impl FnOnce(&Shard)) -> Result<(), StoreError> {
        let ownership = self.ownership.take().ok_or(StoreError::Lost)?;
        let shard = self.shared.shard(&self.key);
        let mut claims = shard.claims.lock();
        if !claims.is_owned_by(&self.key, &ownership) {
            return Err(StoreError::Lost);
        }
        first(shard);
        let slot = claims.remove(&self.key);
        drop(claims);
        drop(ownership);
        if let Some(slot) = slot {
            slot.wake();
        }
        Ok(())
    }
}

/// Wakes all waiters. Each calls `begin` again, so one that is not polled does not hold up the others.
fn wake(waiters: Option<Arc<Notify>>) {
    if let Some(waiters) = waiters {
        waiters.notify_waiters();
    }
}

impl Claim for MemoryClaim {
    async fn renew(&mut self, _lease: Duration) -> Result<(), StoreError> {
        let Some(ownership) = &self.ownership else { return Err(StoreError::Lost) };
        let mut claims = self.shared.shard(&self.key).claims.lock();
        if !claims.is_owned_by(&self.key, ownership) {
            return Err(StoreError::Lost);
        }
        if let Some(info) = self.new_info.take()
            && let Some(slot) = claims.get_mut(&self.key)
        {
            slot.info = Some(info);
        }
        Ok(())
    }

    async fn complete(mut self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        let permit = self.ownership.as_mut().and_then(|permit| permit.take()).ok_or(StoreError::Lost)?;
        let recorded = self.shared.record(record, ttl, permit);
        let (key, real_time) = (self.key, self.shared.clock().is_real_time());
        // The record and the end of the claim in one step: in between another owner could end the claim.
        self.end(|shard| shard.records.insert(key, recorded, ttl, real_time))
    }

    async fn release(mut self) -> Result<(), StoreError> {
        self.end(|_| {})
    }
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        let Some(ownership) = self.ownership.take() else { return };
        drop(ownership);
        let waiters =
            self.shared.shard(&self.key).claims.lock().get_mut(&self.key).and_then(|slot| slot.waiters.take());
        wake(waiters);
    }
}

impl fmt::Debug for MemoryClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryClaim").field("key", &self.key).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::quota::Quota;
    use super::*;

    #[test]
    fn a_large_table_is_shrunk_when_little_of_it_is_in_use() {
        let quota = Arc::new(Quota::new(10_000, usize::MAX));
        let claims = Claims::new(KeyHasher::random());
        let mut claims = claims.lock();
        let key = |number: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&number.to_le_bytes());
            StorageKey::from_bytes(bytes)
        };
        for number in 0..10_000 {
            let claimed = claims.insert(key(number), Fingerprint::builder().finish(), None, quota.admit().unwrap());
            assert!(claimed.is_some());
        }
        let mut shrunk = 0;
        for number in 0..10_000 {
            let before = claims.0.capacity();
            assert!(claims.forget(&key(number)).is_some());
            let (len, capacity) = (claims.len(), claims.0.capacity());
            // A map may lose the place of what was removed, until it is hashed again.
            let unchanged = capacity == before || capacity == before - 1;
            if unchanged {
                assert!(before <= SMALL || len * 8 + 8 >= before, "{len} of {before}");
            } else {
                assert!(before > SMALL && len * 8 < before && len * 2 <= capacity, "{len} of {before}: {capacity}");
                shrunk += 1;
            }
        }
        // Each time to a quarter.
        assert!((2..=5).contains(&shrunk), "{shrunk} times");
    }
}

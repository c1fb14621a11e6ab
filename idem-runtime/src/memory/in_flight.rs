//! The first place: claims. Nothing here expires and nothing is evicted; a slot is gone when its claim has ended.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::permits::Permit;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;

/// Held by the owner of a claim for as long as it lives. Whoever waits for the end awaits the same mutex.
pub(super) type Held = OwnedMutexGuard<()>;

/// The claims of one shard.
#[derive(Default)]
pub(super) struct InFlight {
    slots: HashMap<StorageKey, Slot>,
    next_owner: u64,
}

struct Slot {
    fingerprint: Fingerprint,
    /// The owner's token, or `None` where the owner is gone and the outcome unknown.
    owner: Option<u64>,
    ended: Arc<Mutex<()>>,
    permit: Permit,
}

/// What stands under a key.
pub(super) enum Found {
    Nothing,
    Running(Fingerprint),
    Abandoned(Fingerprint),
}

impl InFlight {
    pub(super) fn find(&self, key: &StorageKey) -> Found {
        match self.slots.get(key) {
            None => Found::Nothing,
            Some(slot) if slot.owner.is_some() => Found::Running(slot.fingerprint),
            Some(slot) => Found::Abandoned(slot.fingerprint),
        }
    }

    /// Puts a claim under a key that has none.
    pub(super) fn claim(&mut self, key: StorageKey, fingerprint: Fingerprint, permit: Permit) -> (u64, Option<Held>) {
        let owner = self.token();
        let ended = Arc::new(Mutex::new(()));
        let held = Arc::clone(&ended).try_lock_owned().ok();
        self.slots.insert(key, Slot { fingerprint, owner: Some(owner), ended, permit });
        (owner, held)
    }

    /// Gives an abandoned claim a new owner.
    pub(super) fn take_over(&mut self, key: &StorageKey) -> Option<(u64, Option<Held>)> {
        let owner = self.token();
        let slot = self.slots.get_mut(key).filter(|slot| slot.owner.is_none())?;
        slot.owner = Some(owner);
        // A mutex of its own: a waiter of the former owner may still be holding the old one for a moment.
        slot.ended = Arc::new(Mutex::new(()));
        Some((owner, Arc::clone(&slot.ended).try_lock_owned().ok()))
    }

    /// Ends the claim of `owner`, and of nobody else.
    pub(super) fn end(&mut self, key: &StorageKey, owner: u64) -> Option<Permit> {
        self.slots.get(key).filter(|slot| slot.owner == Some(owner))?;
        self.remove(key)
    }

    /// Leaves the claim of `owner` without an owner.
    pub(super) fn abandon(&mut self, key: &StorageKey, owner: u64) {
        if let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.owner == Some(owner)) {
            slot.owner = None;
        }
    }

    /// Takes the permit of the claim of `owner` for a moment, to see whether its answer fits.
    pub(super) fn grow(&mut self, key: &StorageKey, owner: u64, bytes: usize) -> Option<bool> {
        let slot = self.slots.get_mut(key).filter(|slot| slot.owner == Some(owner))?;
        Some(slot.permit.grow(bytes))
    }

    pub(super) fn remove(&mut self, key: &StorageKey) -> Option<Permit> {
        let slot = self.slots.remove(key)?;
        // A storm leaves a large empty table behind; give it back when little of it is in use.
        if self.slots.capacity() > 64 && self.slots.len() * 8 < self.slots.capacity() {
            self.slots.shrink_to(self.slots.len() * 2);
        }
        Some(slot.permit)
    }

    /// What to await for the end of the claim under `key`.
    pub(super) fn ended(&self, key: &StorageKey) -> Option<Arc<Mutex<()>>> {
        self.slots.get(key).filter(|slot| slot.owner.is_some()).map(|slot| Arc::clone(&slot.ended))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    fn token(&mut self) -> u64 {
        self.next_owner += 1;
        self.next_owner
    }
}

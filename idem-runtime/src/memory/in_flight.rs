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
    ended: Arc<Mutex<()>>,
    owner: Owner,
}

enum Owner {
    /// The claim with this token, which holds the permit.
    Claim(u64),
    /// Nobody: the owner is gone and the outcome unknown.
    Gone(Permit),
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
            Some(Slot { fingerprint, owner: Owner::Claim(_), .. }) => Found::Running(*fingerprint),
            Some(Slot { fingerprint, owner: Owner::Gone(_), .. }) => Found::Abandoned(*fingerprint),
        }
    }

    /// Puts a claim under a key, in place of whatever claim stands there without an owner, and gives it a token.
    pub(super) fn claim(&mut self, key: StorageKey, fingerprint: Fingerprint) -> (u64, Option<Held>) {
        self.next_owner += 1;
        let owner = self.next_owner;
        // A mutex of its own for each claim: a waiter of a former owner may still be holding that one's for a moment.
        let ended = Arc::new(Mutex::new(()));
        let held = Arc::clone(&ended).try_lock_owned().ok();
        self.slots.insert(key, Slot { fingerprint, ended, owner: Owner::Claim(owner) });
        (owner, held)
    }

    /// Ends the claim of `owner`, and of nobody else.
    pub(super) fn end(&mut self, key: &StorageKey, owner: u64) -> bool {
        let owned = self.slots.get(key).is_some_and(|slot| matches!(slot.owner, Owner::Claim(held) if held == owner));
        if owned {
            self.slots.remove(key);
            self.shrink();
        }
        owned
    }

    /// Leaves the claim of `owner` without an owner.
    pub(super) fn abandon(&mut self, key: &StorageKey, owner: u64, permit: Permit) {
        if let Some(slot) = self.slots.get_mut(key)
            && matches!(slot.owner, Owner::Claim(held) if held == owner)
        {
            slot.owner = Owner::Gone(permit);
        }
    }

    /// Takes an abandoned claim away.
    pub(super) fn take_abandoned(&mut self, key: &StorageKey) -> Option<Permit> {
        if !matches!(self.find(key), Found::Abandoned(_)) {
            return None;
        }
        match self.slots.remove(key)?.owner {
            Owner::Gone(permit) => Some(permit),
            Owner::Claim(_) => None,
        }
    }

    /// What to await for the end of the claim under `key`.
    pub(super) fn ended(&self, key: &StorageKey) -> Option<Arc<Mutex<()>>> {
        let slot = self.slots.get(key).filter(|slot| matches!(slot.owner, Owner::Claim(_)))?;
        Some(Arc::clone(&slot.ended))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// A storm leaves a large empty table behind: gives it back when little of it is in use.
    fn shrink(&mut self) {
        if self.slots.capacity() > 64 && self.slots.len() * 8 < self.slots.capacity() {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }
}

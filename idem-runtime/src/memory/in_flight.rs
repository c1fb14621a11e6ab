//! A claim as the store sees it. It never expires and is never evicted: it stays until it ends.

use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::origin::Origin;
use crate::sync::{AsyncMutex, OwnedMutexGuard};

/// A claim under a key.
pub(super) struct InFlight {
    pub(super) fingerprint: Fingerprint,
    /// In a box, so that a record, which has its own inside, need not be as large as that.
    pub(super) origin: Option<Box<Origin>>,
    owner: Owner,
    turn: Option<Turn>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The claim with this token.
    Claim(u64),
    /// Nobody: the owner is gone and the outcome unknown.
    Gone,
}

/// The mutex of one claim, made when the first request waits for its end. The store holds it for the owner; whoever waits
/// awaits it. Dropped, it wakes the waiters one after the other, which must be after the claim has ended.
pub(super) struct Turn {
    ended: Arc<AsyncMutex<()>>,
    _held: Option<OwnedMutexGuard<()>>,
}

impl InFlight {
    pub(super) fn new(fingerprint: Fingerprint, owner: u64) -> Self {
        Self { fingerprint, origin: None, owner: Owner::Claim(owner), turn: None }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.owner == Owner::Gone
    }

    pub(super) fn is_owned_by(&self, owner: u64) -> bool {
        self.owner == Owner::Claim(owner)
    }

    /// Leaves the claim without an owner. The mutex is given up with the owner: whoever takes the claim over is waited for
    /// with another one, since a waiter of the former may still be holding that for a moment.
    pub(super) fn abandon(&mut self) -> Option<Turn> {
        self.owner = Owner::Gone;
        self.turn.take()
    }

    /// Gives an abandoned claim to the owner with this token.
    pub(super) fn take_over(&mut self, owner: u64) {
        self.owner = Owner::Claim(owner);
    }

    /// What to await for the end of the claim; nothing where no owner will ever end it.
    pub(super) fn ended(&mut self) -> Option<Arc<AsyncMutex<()>>> {
        if self.is_abandoned() {
            return None;
        }
        let turn = self.turn.get_or_insert_with(|| {
            let ended = Arc::new(AsyncMutex::new(()));
            let held = Arc::clone(&ended).try_lock_owned().ok();
            Turn { ended, _held: held }
        });
        Some(Arc::clone(&turn.ended))
    }

    /// The claim has ended: what is to be dropped once the store says so.
    pub(super) fn into_turn(self) -> Option<Turn> {
        self.turn
    }
}

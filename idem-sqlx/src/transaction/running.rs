//! The transactions of this process that hold a key or are about to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idem_runtime::remote::Waiters;
use idem_runtime::{ExecutionInfo, Fingerprint, KeyState, StorageKey, StoredEntry};

/// The keys of the transactions that this process runs. Their rows are seen by no one else until they are committed.
pub(crate) struct Running {
    keys: Mutex<HashMap<StorageKey, (Fingerprint, Option<ExecutionInfo>)>>,
    waiters: Arc<Waiters>,
}

impl Running {
    pub(crate) fn new(waiters: Arc<Waiters>) -> Self {
        Self { keys: Mutex::default(), waiters }
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<StorageKey, (Fingerprint, Option<ExecutionInfo>)>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a key until the guard is dropped. `Err` is the fingerprint of the transaction that has it.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        info: Option<&ExecutionInfo>,
    ) -> Result<Entered, Fingerprint> {
        match self.keys().entry(*key) {
            Entry::Occupied(other) => Err(other.get().0),
            Entry::Vacant(free) => {
                free.insert((*fingerprint, info.cloned()));
                Ok(Entered { running: Arc::clone(self), key: *key })
            }
        }
    }

    /// Returns the fingerprint of the transaction that has the key.
    pub(crate) fn fingerprint(&self, key: &StorageKey) -> Option<Fingerprint> {
        self.keys().get(key).map(|(fingerprint, _)| *fingerprint)
    }

    /// Returns what an operator learns of the transaction that has the key.
    pub(crate) fn entry(&self, key: &StorageKey) -> Option<StoredEntry> {
        let keys = self.keys();
        let (fingerprint, info) = keys.get(key)?;
        let mut entry = StoredEntry::new(KeyState::InFlight(*fingerprint));
        entry.info = info.clone();
        Some(entry)
    }
}

/// A key that is entered. When this is dropped, one of those who wait for it asks whether it is free: another process may hold it.
pub(crate) struct Entered {
    running: Arc<Running>,
    key: StorageKey,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.running.keys().remove(&self.key);
        self.running.waiters.ask(&self.key);
    }
}

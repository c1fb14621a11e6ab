//! The transactions of this process that hold a key or are about to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idem_runtime::remote::Waiters;
use idem_runtime::{ExecutionInfo, Fingerprint, KeyState, StorageKey, StoredEntry};

/// The keys of the transactions that this process runs. Their rows are seen by no one else until they are committed.
pub(crate) struct Running {
    keys: Mutex<HashMap<StorageKey, Transaction>>,
    waiters: Arc<Waiters>,
}

struct Transaction {
    fingerprint: Fingerprint,
    info: Option<ExecutionInfo>,
    /// Whether it holds the key. Before that, another process may.
    holds_key: bool,
}

impl Running {
    pub(crate) fn new(waiters: Arc<Waiters>) -> Self {
        Self { keys: Mutex::default(), waiters }
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<StorageKey, Transaction>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a key until the guard is dropped. `None` if another transaction has entered it.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        info: Option<&ExecutionInfo>,
    ) -> Option<Entered> {
        let mut keys = self.keys();
        let Entry::Vacant(free) = keys.entry(*key) else { return None };
        free.insert(Transaction { fingerprint: *fingerprint, info: info.cloned(), holds_key: false });
        Some(Entered { running: Arc::clone(self), key: *key })
    }

    /// Returns the fingerprint of the transaction that has entered the key.
    pub(crate) fn entered(&self, key: &StorageKey) -> Option<Fingerprint> {
        self.keys().get(key).map(|transaction| transaction.fingerprint)
    }

    /// Returns the fingerprint of the transaction that holds the key.
    pub(crate) fn holder_of(&self, key: &StorageKey) -> Option<Fingerprint> {
        self.keys().get(key).filter(|transaction| transaction.holds_key).map(|transaction| transaction.fingerprint)
    }

    /// Returns what an operator learns of the transaction that has entered the key.
    pub(crate) fn entry(&self, key: &StorageKey) -> Option<StoredEntry> {
        let keys = self.keys();
        let transaction = keys.get(key)?;
        let mut entry = StoredEntry::new(KeyState::InFlight(transaction.fingerprint));
        entry.info = transaction.info.clone();
        Some(entry)
    }
}

/// A key that is entered. When this is dropped, one of those who wait for it asks whether it is free: another process may hold it.
pub(crate) struct Entered {
    running: Arc<Running>,
    key: StorageKey,
}

impl Entered {
    /// The transaction holds the key from now on.
    pub(crate) fn set_holds_key(&self) {
        if let Some(transaction) = self.running.keys().get_mut(&self.key) {
            transaction.holds_key = true;
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.running.keys().remove(&self.key);
        self.running.waiters.ask(&self.key);
    }
}

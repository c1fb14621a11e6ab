//! A store as a user would write it: a map and a mutex, by the trait's rustdoc alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idem_axum::{Begin, BeginOptions, Claim, Fingerprint, Record, StorageKey, Store, StoreError};
use tokio::sync::Notify;

/// Claims and records.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Inner>);

#[derive(Default)]
struct Inner {
    slots: Mutex<HashMap<StorageKey, Slot>>,
    changed: Notify,
}

enum Slot {
    Claimed(Fingerprint, Arc<()>),
    Recorded(Record),
}

/// A claim on a [`Shelf`].
#[derive(Clone)]
pub struct ShelfClaim {
    shelf: Shelf,
    key: StorageKey,
    owner: Arc<()>,
}

impl Store for Shelf {
    type Claim = ShelfClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<ShelfClaim>, StoreError> {
        let mut slots = self.0.slots.lock().expect("not poisoned");
        Ok(match slots.get(key) {
            Some(Slot::Claimed(fingerprint, _)) => Begin::InFlight(*fingerprint),
            Some(Slot::Recorded(record)) => Begin::Completed(record.clone()),
            None => {
                let owner = Arc::new(());
                slots.insert(*key, Slot::Claimed(*fingerprint, owner.clone()));
                Begin::Claimed(ShelfClaim { shelf: self.clone(), key: *key, owner })
            }
        })
    }

    async fn ended(&self, key: &StorageKey) {
        let changed = self.0.changed.notified();
        if matches!(self.0.slots.lock().expect("not poisoned").get(key), Some(Slot::Claimed(..))) {
            changed.await;
        }
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let mut slots = self.0.slots.lock().expect("not poisoned");
        Ok(matches!(slots.get(key), Some(Slot::Recorded(_))) && slots.remove(key).is_some())
    }
}

impl ShelfClaim {
    fn end(self, record: Option<Record>) -> Result<(), StoreError> {
        let mut slots = self.shelf.0.slots.lock().expect("not poisoned");
        match slots.get(&self.key) {
            Some(Slot::Claimed(_, owner)) if Arc::ptr_eq(owner, &self.owner) => slots.remove(&self.key),
            _ => return Err(StoreError::Lost),
        };
        slots.extend(record.map(|record| (self.key, Slot::Recorded(record))));
        self.shelf.0.changed.notify_waiters();
        Ok(())
    }
}

impl Claim for ShelfClaim {
    async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    async fn complete(self, record: Record, _: Duration) -> Result<(), StoreError> {
        self.end(Some(record))
    }

    async fn release(self) -> Result<(), StoreError> {
        self.end(None)
    }
}

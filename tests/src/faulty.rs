//! A store that is slow, fails, or damages what it keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idem_axum::{Begin, BeginOptions, Claim, Fingerprint, Record, StorageKey, Store, StoreError};

use crate::{Shelf, ShelfClaim};

/// What goes wrong.
pub struct Faults {
    /// How often `begin`, `complete` and `release` are polled before they do anything.
    pub pending: usize,
    /// Whether the store cannot be asked for a key.
    pub down: AtomicBool,
    /// How many more completions fail.
    pub failing: AtomicUsize,
    /// Whether a failed step can be repeated.
    pub twins: bool,
    /// What becomes of a record.
    pub damage: fn(Bytes) -> Bytes,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            pending: 0,
            down: AtomicBool::new(false),
            failing: AtomicUsize::new(0),
            twins: true,
            damage: |bytes| bytes,
        }
    }
}

/// A [`Shelf`] with faults.
#[derive(Clone, Default)]
pub struct Faulty {
    pub shelf: Shelf,
    pub faults: Arc<Faults>,
}

impl Faulty {
    pub fn new(faults: Faults) -> Self {
        Self { shelf: Shelf::default(), faults: Arc::new(faults) }
    }
}

/// A claim of [`Faulty`].
pub struct FaultyClaim {
    claim: ShelfClaim,
    faults: Arc<Faults>,
}

async fn pending(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

impl Store for Faulty {
    type Claim = FaultyClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<FaultyClaim>, StoreError> {
        pending(self.faults.pending).await;
        if self.faults.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("the connection was refused"));
        }
        let begun = self.shelf.begin(key, fingerprint, options).await?;
        // Once it has taken effect, the answer may be long under way.
        pending(self.faults.pending).await;
        Ok(match begun {
            Begin::Claimed(claim) => Begin::Claimed(FaultyClaim { claim, faults: self.faults.clone() }),
            Begin::Abandoned(claim) => Begin::Abandoned(FaultyClaim { claim, faults: self.faults.clone() }),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => {
                Begin::Completed(Record::new(*record.fingerprint(), (self.faults.damage)(record.bytes().clone())))
            }
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.shelf.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.shelf.forget(key).await
    }
}

impl Claim for FaultyClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.claim.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        pending(self.faults.pending).await;
        let failing = &self.faults.failing;
        if failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::unavailable("the connection was lost"));
        }
        self.claim.complete(record, ttl).await
    }

    async fn release(self) -> Result<(), StoreError> {
        pending(self.faults.pending).await;
        self.claim.release().await
    }

    fn try_clone(&self) -> Option<Self> {
        self.faults.twins.then(|| Self { claim: self.claim.clone(), faults: self.faults.clone() })
    }
}

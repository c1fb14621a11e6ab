//! A store that is slow, fails, or damages what it keeps.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idem_axum::{Begin, BeginOptions, Claim, Fingerprint, Record, StorageKey, Store, StoreError};
use idem_testkit::intercept::{Hooks, Intercept};

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
    pub copies: bool,
    /// What becomes of a record.
    pub damage: fn(Bytes) -> Bytes,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            pending: 0,
            down: AtomicBool::new(false),
            failing: AtomicUsize::new(0),
            copies: true,
            damage: |bytes| bytes,
        }
    }
}

/// A [`Shelf`] with faults.
pub type Faulty = Intercept<Shelf, Faults>;

impl Faults {
    pub fn over_a_shelf(self) -> Faulty {
        Intercept::new(Shelf::default(), self)
    }
}

async fn pending(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

impl Hooks<Shelf> for Faults {
    async fn begin(
        &self,
        store: &Shelf,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<ShelfClaim>, StoreError> {
        pending(self.pending).await;
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("the connection was refused"));
        }
        let begun = store.begin(key, fingerprint, options).await?;
        // Once it has taken effect, the reply may be long under way.
        pending(self.pending).await;
        Ok(match begun {
            Begin::Completed(record) => {
                Begin::Completed(Record::new(*record.fingerprint(), (self.damage)(record.bytes().clone())))
            }
            begun => begun,
        })
    }

    async fn complete(&self, claim: ShelfClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        pending(self.pending).await;
        if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::unavailable("the connection was lost"));
        }
        claim.complete(record, ttl).await
    }

    async fn release(&self, claim: ShelfClaim) -> Result<(), StoreError> {
        pending(self.pending).await;
        claim.release().await
    }

    fn try_clone(&self, claim: &ShelfClaim) -> Option<ShelfClaim> {
        self.copies.then(|| claim.clone())
    }
}

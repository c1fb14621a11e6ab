use std::time::Duration;

use tokio::runtime::Builder;

use super::*;
use crate::error::StoreError;
use crate::memory::{MemoryClaim, MemoryStore};
use crate::record::Record;
use crate::store::{Begin, BeginOptions};
use crate::store::{Claim, Store};
use crate::{Fingerprint, Key, Rules, Scope, StorageKey};

/// A store that answers at once, but does not end a claim at once.
struct Slow(MemoryStore);

struct SlowClaim(MemoryClaim);

impl Store for Slow {
    type Claim = SlowClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        print: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<SlowClaim>, StoreError> {
        Ok(match self.0.begin(key, print, options).await? {
            Begin::Claimed(claim) => Begin::Claimed(SlowClaim(claim)),
            Begin::Abandoned(claim) => Begin::Abandoned(SlowClaim(claim)),
            Begin::InFlight(print) => Begin::InFlight(print),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.0.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.0.forget(key).await
    }

    fn attach(&self, clock: &Arc<dyn crate::Clock>) -> crate::StoreCapabilities {
        self.0.attach(clock)
    }
}

impl Claim for SlowClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.0.renew(lease).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        self.0.complete(record, ttl).await
    }

    async fn release(self) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        self.0.release().await
    }
}

fn attempt() -> Attempt {
    let key = StorageKey::new("", &Scope::GLOBAL, &Key::parse(b"key").unwrap());
    Attempt::new(key, Fingerprint::builder().finish(), Rules::DEFAULT)
}

/// What is in `store` after a shadow was dropped when its runtime was no longer there.
fn left_in(store: &MemoryStore, idempotency: &Idempotency) -> crate::Usage {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let shadow = runtime.block_on(idempotency.shadow(attempt(), |_| ()));
    assert!(matches!(shadow.0, ShadowState::Claimed(_)));
    drop(runtime);
    drop(shadow);
    store.usage()
}

#[test]
fn dropped_without_a_runtime_it_gives_back_what_a_store_takes_at_once() {
    let store = MemoryStore::new();
    let left = left_in(&store, &Idempotency::new(store.clone()));
    assert_eq!((left.in_flight, left.completed), (0, 0));
}

#[test]
fn dropped_without_a_runtime_it_leaves_the_claim_to_a_store_that_takes_its_time() {
    let store = MemoryStore::new();
    let left = left_in(&store, &Idempotency::new(Slow(store.clone())));
    assert_eq!((left.in_flight, left.completed), (1, 0));
}

#[tokio::test]
async fn a_report_that_panics_changes_nothing() {
    let store = MemoryStore::new();
    for idempotency in [Idempotency::new(store.clone()), Idempotency::new(Slow(store.clone()))] {
        let shadow = idempotency.shadow(attempt(), |_| panic!("a subscriber panicked")).await;
        shadow.ended(Outcome::Release);
        idempotency.drain().await;
        assert_eq!(store.usage().entries, 0, "the claim was ended");
    }
}

#[tokio::test]
async fn what_the_store_does_not_end_at_once_a_task_goes_on_with() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(Slow(store.clone()));
    drop(idempotency.shadow(attempt(), |_| ()).await);
    idempotency.drain().await;
    let left = store.usage();
    assert_eq!((left.in_flight, left.completed), (0, 0));
}

use std::time::Duration;

use tokio::runtime::Builder;

use super::*;
use crate::error::StoreError;
use crate::intercept::{Hooks, Intercept};
use crate::memory::{MemoryClaim, MemoryStore};
use crate::record::Record;
use crate::store::Claim;
use crate::{Fingerprint, Key, Rules, Scope, StorageKey};

/// The store does not end a claim at once.
struct EndsLater;

impl Hooks<MemoryStore> for EndsLater {
    async fn complete(&self, claim: MemoryClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        claim.complete(record, ttl).await
    }

    async fn release(&self, claim: MemoryClaim) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        claim.release().await
    }

    fn try_clone(&self, _: &MemoryClaim) -> Option<MemoryClaim> {
        None
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
fn dropped_without_a_runtime_it_releases_what_a_store_releases_at_once() {
    let store = MemoryStore::new();
    let left = left_in(&store, &Idempotency::new(store.clone()));
    assert_eq!((left.in_flight, left.completed), (0, 0));
}

#[test]
fn dropped_without_a_runtime_it_leaves_the_claim_to_a_store_that_takes_its_time() {
    let store = MemoryStore::new();
    let left = left_in(&store, &Idempotency::new(Intercept::new(store.clone(), EndsLater)));
    assert_eq!((left.in_flight, left.completed), (1, 0));
}

#[tokio::test]
async fn a_report_that_panics_changes_nothing() {
    let store = MemoryStore::new();
    for idempotency in [Idempotency::new(store.clone()), Idempotency::new(Intercept::new(store.clone(), EndsLater))] {
        let shadow = idempotency.shadow(attempt(), |_| panic!("a subscriber panicked")).await;
        shadow.ended(Outcome::Release);
        idempotency.drain().await;
        assert_eq!(store.usage().entries, 0, "the claim was ended");
    }
}

#[tokio::test]
async fn what_the_store_does_not_end_at_once_a_task_goes_on_with() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(Intercept::new(store.clone(), EndsLater));
    drop(idempotency.shadow(attempt(), |_| ()).await);
    idempotency.drain().await;
    let left = store.usage();
    assert_eq!((left.in_flight, left.completed), (0, 0));
}

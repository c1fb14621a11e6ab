use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::Notify;

use super::*;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::memory::{MemoryClaim, MemoryStore};
use crate::record::{Record, RecordBuilder};
use crate::store::{Begin, BeginOptions, Claim, Store, StoreCapabilities};
use crate::test_support::intercept::{Hooks, Intercept};
use crate::{Abandoned, Fingerprint, Key, Rules, Scope, StorageKey};

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

/// A store outside the process, as far as shadow mode can tell: it replies later, and its claims are renewed.
#[derive(Default)]
struct Remote {
    renewals: AtomicUsize,
    renewed: Notify,
    loses_claims: bool,
}

impl Hooks<MemoryStore> for Remote {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        tokio::task::yield_now().await;
        store.begin(key, fingerprint, options).await
    }

    async fn renew(&self, claim: &mut MemoryClaim, lease: Duration) -> Result<(), StoreError> {
        self.renewals.fetch_add(1, SeqCst);
        self.renewed.notify_one();
        if self.loses_claims { Err(StoreError::Lost) } else { claim.renew(lease).await }
    }

    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { claims_live_with_owner: false, ..store.attach(clock) }
    }
}

/// Returns a shadow, and what it will report.
async fn shadow(idempotency: &Idempotency, attempt: Attempt) -> (Shadow, oneshot::Receiver<ShadowOutcome>) {
    let (report, reported) = oneshot::channel();
    let shadow = idempotency.shadow(attempt, move |outcome| drop(report.send(outcome))).await;
    (shadow, reported)
}

fn rerun() -> Attempt {
    let mut attempt = attempt();
    attempt.rules.abandoned = Abandoned::Rerun;
    attempt
}

async fn abandon(store: &MemoryStore) {
    let options = BeginOptions::new(Duration::ZERO, Duration::MAX);
    drop(store.begin(&attempt().key, &attempt().fingerprint, &options).await.unwrap());
}

fn one() -> Outcome {
    let mut record = RecordBuilder::new();
    record.put(b"one");
    Outcome::Record(record)
}

#[tokio::test(start_paused = true)]
async fn over_a_store_that_replies_later_a_task_keeps_the_claim_and_records() {
    let store = MemoryStore::new();
    let remote = Intercept::new(store.clone(), Remote::default());
    let idempotency = Idempotency::builder(remote.clone()).lease(Duration::from_secs(3)).build();
    let (first, reported) = shadow(&idempotency, attempt()).await;
    assert!(matches!(reported.await, Ok(ShadowOutcome::Execute)));
    remote.hooks.renewed.notified().await;
    let (_second, reported) = shadow(&idempotency, attempt()).await;
    assert!(matches!(reported.await, Ok(ShadowOutcome::Refuse(RefusalReason::InFlight))));
    let mut other = attempt();
    other.fingerprint = Fingerprint::from_bytes([1; 32]);
    let (_third, reported) = shadow(&idempotency, other).await;
    assert!(matches!(reported.await, Ok(ShadowOutcome::Refuse(RefusalReason::Mismatch))));
    first.ended(one());
    idempotency.drain().await;
    let (_fourth, reported) = shadow(&idempotency, attempt()).await;
    assert!(matches!(reported.await, Ok(ShadowOutcome::Replay)));
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_a_lease_is_renewed_although_the_store_replied_at_once() {
    struct Leased;

    impl Hooks<MemoryStore> for Leased {
        fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
            StoreCapabilities { claims_live_with_owner: false, ..store.attach(clock) }
        }
    }
    let idempotency = Idempotency::new(Intercept::new(MemoryStore::new(), Leased));
    let (shadow, _) = shadow(&idempotency, attempt()).await;
    assert!(matches!(shadow.0, ShadowState::InTask(_)));
}

#[tokio::test]
async fn an_abandoned_claim_is_taken_over_and_recorded_unless_it_is_lost() {
    for loses_claims in [false, true] {
        let store = MemoryStore::new();
        let remote = Intercept::new(store.clone(), Remote { loses_claims, ..Remote::default() });
        let idempotency = Idempotency::new(remote.clone());
        abandon(&store).await;
        let (shadow, reported) = shadow(&idempotency, rerun()).await;
        assert!(matches!(reported.await, Ok(ShadowOutcome::Execute)));
        shadow.ended(one());
        idempotency.drain().await;
        assert_eq!(remote.hooks.renewals.load(SeqCst), 1);
        assert_eq!(store.usage().completed, usize::from(!loses_claims));
    }
}

#[tokio::test]
async fn without_room_a_new_claim_is_released_and_an_abandoned_one_stays() {
    for (is_abandoned, left) in [(false, 0), (true, 1)] {
        let store = MemoryStore::new();
        let remote = Intercept::new(store.clone(), Remote::default());
        let idempotency = Idempotency::builder(remote).max_executions(0).build();
        if is_abandoned {
            abandon(&store).await;
        }
        let (_shadow, reported) = shadow(&idempotency, rerun()).await;
        assert!(matches!(reported.await, Ok(ShadowOutcome::Refuse(RefusalReason::TooManyExecutions))));
        idempotency.drain().await;
        assert_eq!(store.usage().entries, left);
    }
}

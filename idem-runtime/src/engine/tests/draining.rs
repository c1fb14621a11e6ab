//! What a drain waits for beside the bodies: the store, and what starts while the store is at it.

use std::time::Duration;

use super::*;
use crate::StoredEntry;
use crate::memory::MemoryClaim;

/// A store in memory that has something left to do until it may end.
#[derive(Clone)]
struct Busy {
    store: MemoryStore,
    asked: Arc<Notify>,
    may_end: Arc<Gate>,
}

impl Busy {
    fn new() -> Self {
        Self { store: MemoryStore::new(), asked: Arc::default(), may_end: Arc::new(Gate::new(0)) }
    }
}

impl Busy {
    /// The drain has come to the store.
    async fn asked(&self) {
        let asked = tokio::time::timeout(Duration::from_secs(10), self.asked.notified()).await;
        asked.expect("a drain asks the store");
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Busy {
    type Claim = MemoryClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        self.store.begin(key, fingerprint, options).await
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.forget(key).await
    }

    async fn drained(&self) {
        self.asked.notify_one();
        self.may_end.acquire().await.unwrap().forget();
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.store.attach(clock)
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.store.inspect(key).await
    }

    async fn inspect_unknown(
        &self,
        from: Option<&bytes::Bytes>,
    ) -> Result<crate::store::KeyPage<StoredEntry>, StoreError> {
        self.store.inspect_unknown(from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.revoke(key).await
    }
}

#[tokio::test]
async fn a_drain_waits_for_the_store_and_for_executions_that_start_meanwhile() {
    let store = Busy::new();
    let idempotency = Idempotency::new(store.clone());
    let drain = tokio::spawn({
        let idempotency = idempotency.clone();
        async move {
            idempotency.drain().await;
            idempotency.executions()
        }
    });
    store.asked().await;
    assert!(!drain.is_finished());
    let body = Body::new();
    let late = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), body.run(answer("late")));
        async move { idempotency.run(attempt("late", "r"), run).await }
    });
    body.started.notified().await;
    store.may_end.add_permits(1);
    // The drain comes back for the store only when the late execution has ended.
    tokio::select! {
        biased;
        () = store.asked.notified() => panic!("an execution runs"),
        () = tokio::task::yield_now() => assert!(!drain.is_finished()),
    }
    body.go_on.add_permits(1);
    store.asked().await;
    store.may_end.add_permits(1);
    assert_eq!(drain.await.unwrap(), 0);
    assert_eq!(ran(late.await.unwrap()), 1);
}

#[tokio::test]
async fn a_drain_that_is_ended_while_only_the_store_is_at_it_cuts_no_body_off() {
    let idempotency = Idempotency::new(Busy::new());
    assert_eq!(idempotency.drain_until(async {}).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_ever_for_a_store_that_never_finishes() {
    let idempotency = Idempotency::builder(Busy::new()).lease(Duration::from_secs(30)).build();
    let started = Instant::now();
    tokio::time::timeout(Duration::from_secs(24 * 60 * 60), idempotency.drain()).await.expect("the drain ends");
    assert!(started.elapsed() >= Duration::from_secs(30), "unconfirmed claims get a lease: {:?}", started.elapsed());
}

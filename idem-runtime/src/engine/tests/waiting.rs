use tokio::task::JoinSet;

use super::*;

/// A store whose `ended` resolves only when it is told so, as a waiter that is not polled for a while sees it.
#[derive(Clone)]
struct Deaf {
    store: MemoryStore,
    begins: Arc<AtomicUsize>,
    /// Whether `ended` is ready at once.
    spurious: bool,
}

impl Deaf {
    fn new(spurious: bool) -> Self {
        Self { store: MemoryStore::new(), begins: Arc::default(), spurious }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Deaf {
    type Claim = <MemoryStore as Store>::Claim;

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.store.attach(clock)
    }

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        self.begins.fetch_add(1, Ordering::SeqCst);
        self.store.begin(key, fingerprint, options).await
    }

    async fn ended(&self, _: &StorageKey) {
        if !self.spurious {
            std::future::pending::<()>().await;
        }
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.forget(key).await
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<crate::store::StoredEntry>, StoreError> {
        self.store.inspect(key).await
    }

    async fn inspect_unknown(
        &self,
        from: Option<&bytes::Bytes>,
    ) -> Result<crate::store::KeyPage<crate::store::StoredEntry>, StoreError> {
        self.store.inspect_unknown(from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.revoke(key).await
    }

    async fn drained(&self) {
        self.store.drained().await;
    }
}

fn patient(max: Duration) -> Attempt {
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(max);
    attempt
}

#[tokio::test(start_paused = true)]
async fn a_waiter_looks_once_more_before_it_gives_up() {
    let idempotency = Idempotency::new(Deaf::new(false));
    let attempt = patient(Duration::from_secs(5));
    let body = Body::new();
    let first = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), body.run(answer("one")));
        async move { idempotency.run(attempt, run).await }
    });
    body.started.notified().await;
    let second = idempotency.run(attempt, body.run(answer("two")));
    let (second, ()) = tokio::join!(second, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        body.go_on.add_permits(1);
    });
    assert_eq!(recorded(second), "one", "no wake-up came, and the record is there when the time is up");
    assert_eq!(ran(first.await.unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_always_ready_is_asked_at_a_bounded_rate() {
    let store = Deaf::new(true);
    let idempotency = Idempotency::new(store.clone());
    let attempt = patient(Duration::from_secs(10));
    let body = Body::new();
    let first = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), body.run(answer("one")));
        async move { idempotency.run(attempt, run).await }
    });
    body.started.notified().await;
    let refused = idempotency.run(attempt, body.run(answer("two"))).await;
    assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
    let begins = store.begins.load(Ordering::SeqCst);
    assert!((50..150).contains(&begins), "{begins} in 10 s");
    body.go_on.add_permits(1);
    assert_eq!(ran(first.await.unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_waiters_get_their_turn_without_pauses() {
    const TIME: Duration = Duration::from_millis(2);
    let idempotency = Idempotency::in_memory();
    let attempt = patient(Duration::from_secs(30));
    let asked = Instant::now();
    let mut waiters = JoinSet::new();
    for _ in 0..1000 {
        let idempotency = idempotency.clone();
        waiters.spawn(async move {
            let handler = |_| async {
                tokio::time::sleep(TIME).await;
                Executed { response: (), recording: Recording::Done(Outcome::Release) }
            };
            idempotency.run(attempt, handler).await
        });
    }
    while let Some(waiter) = waiters.join_next().await {
        assert!(matches!(waiter.unwrap(), Ok(RunResult::Executed(()))));
    }
    // The paused clock moves only while nothing else can.
    assert!(asked.elapsed() < TIME * 1100, "{:?}", asked.elapsed());
}

#[test]
fn a_waiter_without_a_time_driver_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let idempotency = Idempotency::in_memory();
        let attempt = patient(Duration::from_secs(30));
        let body = Body::new();
        let first = tokio::spawn({
            let (idempotency, run) = (idempotency.clone(), body.run(answer("one")));
            async move { idempotency.run(attempt, run).await }
        });
        body.started.notified().await;
        let refused = idempotency.run(attempt, body.run(answer("two"))).await;
        assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
        body.go_on.add_permits(1);
        assert_eq!(ran(first.await.unwrap()), 1);
    });
}

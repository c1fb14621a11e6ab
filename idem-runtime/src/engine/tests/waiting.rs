use tokio::task::JoinSet;

use super::*;
use crate::engine::wait::InFlightWait;

/// `ended` resolves only when it is told so, as a waiter that is not polled for a while sees it.
struct Deaf {
    begins: AtomicUsize,
    /// Whether `ended` is ready at once.
    spurious: bool,
}

impl Deaf {
    fn over_memory(spurious: bool) -> Intercept<MemoryStore, Self> {
        Intercept::new(MemoryStore::new(), Self { begins: AtomicUsize::new(0), spurious })
    }
}

impl Hooks<MemoryStore> for Deaf {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        self.begins.fetch_add(1, Ordering::SeqCst);
        store.begin(key, fingerprint, options).await
    }

    async fn ended(&self, _: &MemoryStore, _: &StorageKey) {
        if !self.spurious {
            std::future::pending::<()>().await;
        }
    }
}

fn patient(max: Duration) -> Attempt {
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(max);
    attempt
}

#[tokio::test(start_paused = true)]
async fn a_waiter_looks_once_more_before_it_gives_up() {
    let idempotency = Idempotency::new(Deaf::over_memory(false));
    let attempt = patient(Duration::from_secs(5));
    let handler = Handler::new();
    let first = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), handler.run(response("one")));
        async move { idempotency.run(attempt, run).await }
    });
    handler.started.notified().await;
    let second = idempotency.run(attempt, handler.run(response("two")));
    let (second, ()) = tokio::join!(second, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        handler.may_end.add_permits(1);
    });
    assert_eq!(recorded(second), "one", "no wake-up came, and the record is there when the time is up");
    assert_eq!(ran(first.await.unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_always_ready_is_asked_at_a_bounded_rate() {
    let store = Deaf::over_memory(true);
    let idempotency = Idempotency::new(store.clone());
    let attempt = patient(Duration::from_secs(10));
    let handler = Handler::new();
    let first = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), handler.run(response("one")));
        async move { idempotency.run(attempt, run).await }
    });
    handler.started.notified().await;
    let refused = idempotency.run(attempt, handler.run(response("two"))).await;
    assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
    let begins = store.hooks.begins.load(Ordering::SeqCst);
    assert!((50..150).contains(&begins), "{begins} in 10 s");
    handler.may_end.add_permits(1);
    assert_eq!(ran(first.await.unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn wake_ups_without_a_reason_are_believed_three_times_and_then_followed_by_growing_pauses() {
    let mut wait = InFlightWait::new(Duration::from_secs(1));
    let mut pauses = Vec::new();
    loop {
        let asked = Instant::now();
        if !wait.wait(Box::pin(async {})).await {
            break;
        }
        pauses.push(asked.elapsed().as_millis());
    }
    let last = 1000 - (127 + 8 * 100);
    assert_eq!(pauses, [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 100, 100, 100, 100, 100, 100, 100, 100, last]);
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_that_was_waited_for_has_a_reason() {
    let mut wait = InFlightWait::new(Duration::from_secs(1));
    for _ in 0..5 {
        for _ in 0..3 {
            assert!(wait.wait(Box::pin(async {})).await);
        }
        assert!(wait.wait(Box::pin(tokio::task::yield_now())).await);
    }
    assert_eq!(wait.time_left(), Duration::from_secs(2), "no time has passed, and a last look may take a second");
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
        let handler = Handler::new();
        let first = tokio::spawn({
            let (idempotency, run) = (idempotency.clone(), handler.run(response("one")));
            async move { idempotency.run(attempt, run).await }
        });
        handler.started.notified().await;
        let refused = idempotency.run(attempt, handler.run(response("two"))).await;
        assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
        handler.may_end.add_permits(1);
        assert_eq!(ran(first.await.unwrap()), 1);
    });
}

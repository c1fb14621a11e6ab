//! Faults of a service's code that the engine contains.

use super::*;
use crate::clock::{SystemClock, Timestamp};
use crate::memory::MemoryClaim;

/// A clock that panics when it is told to.
#[derive(Clone, Default)]
struct Broken(Arc<AtomicUsize>);

impl Clock for Broken {
    fn now(&self) -> Timestamp {
        assert!(self.0.load(Ordering::SeqCst) == 0, "on purpose");
        SystemClock::new().now()
    }
}

#[tokio::test]
async fn a_clock_that_panics_withholds_no_response_and_lets_nothing_run_twice() {
    let clock = Broken::default();
    let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
    let broken = clock.clone();
    let handler = move |_| async move {
        broken.0.store(1, Ordering::SeqCst);
        Executed { response: 1, recording: Recording::Done(response("one")) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), handler).await), 1);
    let handler = Handler::ready();
    assert_eq!(recorded(idempotency.run(attempt("a", "x"), handler.run(response("two"))).await), "one");
    clock.0.store(0, Ordering::SeqCst);
    assert_eq!(recorded(idempotency.run(attempt("a", "x"), handler.run(response("two"))).await), "one");
}

/// The futures of the store panic when they are dropped.
struct PanicsOnDrop;

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("on purpose");
        }
    }
}

impl Hooks<MemoryStore> for PanicsOnDrop {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        let bomb = Bomb;
        let begun = store.begin(key, fingerprint, options).await;
        // It is dropped with the future, and not when this returns.
        std::mem::forget(bomb);
        begun
    }

    async fn ended(&self, _: &MemoryStore, _: &StorageKey) {
        let _bomb = Bomb;
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_future_of_a_store_that_panics_when_it_is_dropped_harms_no_request() {
    let idempotency = Idempotency::new(Intercept::new(MemoryStore::new(), PanicsOnDrop));
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::from_secs(1));
    let handler = Handler::new();
    let first = tokio::spawn(idempotency.run(attempt, handler.run(response("one"))));
    handler.started.notified().await;
    let waited = tokio::spawn(idempotency.run(attempt, handler.run(response("two")))).await;
    assert!(matches!(waited, Ok(Err(RefusalReason::InFlight))), "{waited:?}");
    handler.may_end.add_permits(1);
    assert_eq!(ran(first.await.unwrap()), 1);
}

#[test]
fn an_attempt_outside_an_async_runtime_leaves_no_claim() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let handler = Handler::ready();
    let mut run = Box::pin(idempotency.run(attempt("a", "x"), handler.run(response("one"))));
    let refused = poll_now(&mut run).expect("there is nothing to wait for");
    assert!(matches!(refused, Err(RefusalReason::StoreUnavailable(_))), "{refused:?}");
    assert_eq!((store.usage().entries, handler.runs()), (0, 0));
}

/// Runs `work` in an async runtime that has no timers. What the store in memory does needs none.
fn without_timers<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[test]
fn without_timers_a_refused_request_leaves_no_claim() {
    without_timers(async {
        let store = MemoryStore::new();
        let idempotency = Idempotency::builder(store.clone()).max_executions(0).build();
        let run = tokio::spawn(idempotency.run(attempt("a", "x"), Handler::ready().run(response("one"))));
        let refused = run.await.expect("the request gets a refusal");
        assert!(matches!(refused, Err(RefusalReason::TooManyExecutions)), "{refused:?}");
        let shadow = tokio::spawn(async move { idempotency.shadow(attempt("b", "x"), |_| ()).await });
        shadow.await.expect("a request in shadow mode goes on").ended(response("one"));
        assert_eq!(store.usage().entries, 0);
    });
}

#[test]
fn without_timers_an_operator_can_do_everything() {
    without_timers(async {
        let idempotency = Idempotency::in_memory();
        let (scope, key) = (Scope::GLOBAL, Key::parse(b"a").unwrap());
        let handler = Handler::new();
        let first = tokio::spawn(idempotency.run(attempt("a", "x"), handler.run(response("one"))));
        handler.started.notified().await;
        assert!(idempotency.revoke(&scope, &key).await.unwrap());
        assert_eq!(idempotency.inspect(&scope, &key).await.unwrap().unwrap().status(), KeyStatus::OutcomeUnknown);
        assert_eq!(idempotency.inspect_unknown(None).await.unwrap().keys.len(), 1);
        handler.may_end.add_permits(1);
        assert_eq!(ran(first.await.unwrap()), 1, "the client gets the response of a claim that was revoked");
        assert_eq!(idempotency.settle(&scope, &key, response("settled")).await.unwrap(), Settled::Now);
        assert!(idempotency.forget(&scope, &key).await.unwrap());
    });
}

#[test]
fn without_timers_an_abandoned_claim_is_taken_over() {
    without_timers(async {
        for is_shadow in [false, true] {
            let store = MemoryStore::new();
            let idempotency = Idempotency::new(store.clone());
            let mut attempt = attempt("a", "x");
            attempt.rules.abandoned = Abandoned::Rerun;
            drop(
                store
                    .begin(&attempt.key, &attempt.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX))
                    .await,
            );
            if is_shadow {
                idempotency.shadow(attempt, |_| ()).await.ended(response("one"));
                idempotency.drain().await;
            } else {
                assert_eq!(ran(idempotency.run(attempt, Handler::ready().run(response("one"))).await), 1);
            }
            assert_eq!(recorded(idempotency.run(attempt, Handler::ready().run(response("two"))).await), "one");
        }
    });
}

#[tokio::test]
async fn at_the_end_of_time_nothing_runs_twice() {
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
    let handler = Handler::ready();
    clock.advance(Duration::MAX);
    assert_eq!(ran(idempotency.run(attempt("a", "x"), handler.run(response("one"))).await), 1);
    assert_eq!(recorded(idempotency.run(attempt("a", "x"), handler.run(response("two"))).await), "one");
}

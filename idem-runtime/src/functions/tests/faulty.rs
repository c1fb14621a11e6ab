//! Functions over a store that fails, and callers that are dropped.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::memory::MemoryClaim;
use crate::record::Record;
use crate::store::{Begin, Claim};
use crate::test_support::intercept::{Hooks, Intercept};

/// Each step is pending several times, so that a task awaits it. While the store is down, every step fails.
#[derive(Default)]
struct Faulty {
    down: AtomicBool,
}

impl Faulty {
    fn over_memory() -> Intercept<MemoryStore, Self> {
        Intercept::new(MemoryStore::new(), Self::default())
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    async fn step(&self) -> Result<(), StoreError> {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("the network is down"));
        }
        Ok(())
    }
}

impl Hooks<MemoryStore> for Faulty {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        self.step().await?;
        store.begin(key, fingerprint, options).await
    }

    async fn renew(&self, claim: &mut MemoryClaim, lease: Duration) -> Result<(), StoreError> {
        self.step().await?;
        claim.renew(lease).await
    }

    async fn complete(&self, claim: MemoryClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.step().await?;
        claim.complete(record, ttl).await
    }

    async fn release(&self, claim: MemoryClaim) -> Result<(), StoreError> {
        self.step().await?;
        claim.release().await
    }
}

/// Polls `call` up to `polls` times, and lets other tasks go on meanwhile. Returns whether it ended.
async fn poll_up_to<T>(polls: usize, mut call: Pin<&mut impl Future<Output = T>>) -> bool {
    for _ in 0..polls {
        if poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

#[tokio::test]
async fn a_call_that_is_dropped_at_any_await_runs_once_and_is_recorded() {
    for succeeds in [true, false] {
        let mut polls = 0;
        loop {
            let idempotency = Idempotency::new(Faulty::over_memory());
            let runs = Runs::default();
            let run = |succeeds| {
                let runs = Arc::clone(&runs);
                idempotency.once("ship", "a").run(async move || {
                    let run = count(runs).await?;
                    tokio::task::yield_now().await;
                    if succeeds { Ok(run) } else { Err(Failure::Own("out of stock")) }
                })
            };
            let mut call = Box::pin(run(succeeds));
            let ended = poll_up_to(polls, call.as_mut()).await;
            drop(call);
            idempotency.drain().await;
            let started = usize::from(polls > 0);
            assert_eq!(runs.load(Ordering::SeqCst), started, "dropped after {polls} polls");
            let expected = if succeeds { 1 } else { started + 1 };
            assert_eq!(run(true).await.unwrap(), expected, "dropped after {polls} polls");
            if ended {
                break;
            }
            polls += 1;
        }
        assert!(polls > 4, "`begin`, the function and the end of the claim are pending: {polls}");
    }
}

#[tokio::test]
async fn a_value_that_the_store_does_not_take_is_returned_and_its_function_never_runs_again() {
    let faulty = Faulty::over_memory();
    let idempotency = Idempotency::new(faulty.clone());
    let running = Running::start(idempotency.once("ship", "a"), || Ok(7)).await;
    faulty.hooks.set_down(true);
    assert_eq!(running.finish().await.unwrap(), 7);
    faulty.hooks.set_down(false);
    let second = idempotency.once("ship", "a").run(async || Err::<usize, _>(Failure::Own("ran again"))).await;
    assert!(matches!(refused(second), RefusalReason::OutcomeUnknown));
}

#[tokio::test]
async fn a_panic_is_resumed_if_the_store_fails_too() {
    let faulty = Faulty::over_memory();
    let idempotency = Idempotency::new(faulty.clone());
    let running = Running::start(idempotency.once("ship", "a"), || std::panic::panic_any("on purpose")).await;
    faulty.hooks.set_down(true);
    running.go_on.add_permits(1);
    let panic = running.caller.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
}

#[tokio::test]
async fn a_store_that_is_down_is_retryable_and_nothing_runs() {
    let faulty = Faulty::over_memory();
    faulty.hooks.set_down(true);
    let idempotency = Idempotency::new(faulty.clone());
    let runs = Runs::default();
    let run = || {
        let runs = Arc::clone(&runs);
        idempotency.once("ship", "a").run(async move || count(runs).await)
    };
    let reason = refused(run().await);
    assert!(matches!(reason, RefusalReason::StoreUnavailable(_)) && reason.is_retryable(), "{reason:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    faulty.hooks.set_down(false);
    assert_eq!(run().await.unwrap(), 1);
}

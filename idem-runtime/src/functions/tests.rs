use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Barrier, Notify, Semaphore};
use tokio::task::JoinSet;

use super::*;
use crate::KeyStatus;
use crate::clock::ManualClock;
use crate::key::Key;
use crate::memory::MemoryStore;
use crate::scope::Scope;
use crate::store::{BeginOptions, Store};

mod faulty;
mod spans;
mod values;

/// An error of the user: the refusal, or the function's own.
#[derive(Debug)]
enum Failure {
    Own(&'static str),
    Refused(RefusalReason),
}

impl From<RefusalReason> for Failure {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(reason)
    }
}

type Runs = Arc<AtomicUsize>;

/// Counts its runs, and returns which one it was.
async fn count(runs: Runs) -> Result<usize, Failure> {
    Ok(runs.fetch_add(1, Ordering::SeqCst) + 1)
}

fn refused<T: fmt::Debug>(result: Result<T, Failure>) -> RefusalReason {
    match result {
        Err(Failure::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// A function that runs until it may end, in a task that the test may abort.
struct Running {
    started: Arc<Notify>,
    go_on: Arc<Semaphore>,
    caller: tokio::task::JoinHandle<Result<usize, Failure>>,
}

impl Running {
    /// Returns when the function has started.
    async fn start(once: Once, result: impl FnOnce() -> Result<usize, Failure> + Send + 'static) -> Self {
        let (started, go_on) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
        let function = {
            let (started, go_on) = (Arc::clone(&started), Arc::clone(&go_on));
            async move || {
                started.notify_one();
                go_on.acquire().await.unwrap().forget();
                result()
            }
        };
        let caller = tokio::spawn(once.run(function));
        let running = Self { started, go_on, caller };
        running.started.notified().await;
        running
    }

    async fn finish(self) -> Result<usize, Failure> {
        self.go_on.add_permits(1);
        self.caller.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_concurrent_calls_one_runs_the_function_and_all_get_its_value() {
    let idempotency = Idempotency::in_memory();
    let runs = Runs::default();
    let barrier = Arc::new(Barrier::new(64));
    let mut calls = JoinSet::new();
    for _ in 0..64 {
        let (idempotency, runs, barrier) = (idempotency.clone(), Arc::clone(&runs), Arc::clone(&barrier));
        calls.spawn(async move {
            barrier.wait().await;
            let once = idempotency.once("ship", "a").in_flight(WhenInFlight::Wait(Duration::from_secs(30)));
            once.run(async move || {
                tokio::task::yield_now().await;
                count(runs).await
            })
            .await
        });
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().unwrap(), 1);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
#[should_panic(expected = "every call would run the function")]
async fn a_time_of_zero_is_refused() {
    drop(Idempotency::in_memory().once("ship", "a").ttl(Duration::ZERO));
}

#[tokio::test]
async fn a_function_whose_caller_is_dropped_runs_to_its_end_and_is_recorded() {
    let idempotency = Idempotency::in_memory();
    let running = Running::start(idempotency.once("ship", "a"), || Ok(7)).await;
    running.caller.abort();
    assert!(running.caller.await.unwrap_err().is_cancelled());
    let second: Result<usize, _> = idempotency.once("ship", "a").run(async || Err(Failure::Own("ran again"))).await;
    assert!(matches!(refused(second), RefusalReason::InFlight));
    running.go_on.add_permits(1);
    idempotency.drain().await;
    let third: Result<usize, _> = idempotency.once("ship", "a").run(async || Err(Failure::Own("ran again"))).await;
    assert_eq!(third.unwrap(), 7);
}

#[tokio::test]
async fn an_error_releases_the_claim_and_the_next_call_runs() {
    let idempotency = Idempotency::in_memory();
    let first: Result<usize, _> = idempotency.once("ship", "a").run(async || Err(Failure::Own("out of stock"))).await;
    assert!(matches!(first, Err(Failure::Own("out of stock"))), "{first:?}");
    assert!(idempotency.once("ship", "a").inspect().await.unwrap().is_none());
    let runs = Runs::default();
    for _ in 0..2 {
        let runs = Arc::clone(&runs);
        assert_eq!(idempotency.once("ship", "a").run(async move || count(runs).await).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_panic_is_resumed_in_the_caller_and_releases_the_claim() {
    let idempotency = Idempotency::in_memory();
    let in_the_future = idempotency.once("ship", "a").run(async || {
        tokio::task::yield_now().await;
        if true {
            std::panic::panic_any("on purpose");
        }
        Ok::<usize, Failure>(0)
    });
    let in_the_call = idempotency.once("ship", "a").run(|| -> std::future::Ready<Result<usize, Failure>> {
        std::panic::panic_any("on purpose");
    });
    let calls: [Pin<Box<dyn Future<Output = _> + Send>>; 2] = [Box::pin(in_the_future), Box::pin(in_the_call)];
    for call in calls {
        let panic = tokio::spawn(call).await.unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
        assert!(idempotency.once("ship", "a").inspect().await.unwrap().is_none(), "released");
    }
    assert_eq!(idempotency.once("ship", "a").run(async || count(Runs::default()).await).await.unwrap(), 1);
}

#[tokio::test]
async fn another_fingerprint_is_refused_while_running_and_after() {
    let idempotency = Idempotency::in_memory();
    let other = || {
        let once = idempotency.once("ship", "a").fingerprint(&"coffee").in_flight(WhenInFlight::Wait(Duration::MAX));
        once.run(async || Err::<usize, _>(Failure::Own("ran again")))
    };
    let running = Running::start(idempotency.once("ship", "a").fingerprint(&"tea"), || Ok(1)).await;
    assert!(matches!(refused(other().await), RefusalReason::Mismatch));
    assert_eq!(running.finish().await.unwrap(), 1);
    assert!(matches!(refused(other().await), RefusalReason::Mismatch));
    let same = idempotency.once("ship", "a").fingerprint(&"tea").run(async || count(Runs::default()).await).await;
    assert_eq!(same.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_gets_the_value_or_runs_after_an_error_or_gives_up() {
    let idempotency = Idempotency::in_memory();
    let wait = || {
        let once = idempotency.once("ship", "a").in_flight(WhenInFlight::Wait(Duration::from_secs(5)));
        once.run(async || Ok::<usize, Failure>(2))
    };
    for first in [None, Some(1)] {
        let result = move || first.ok_or(Failure::Own("out of stock"));
        let running = Running::start(idempotency.once("ship", "a"), result).await;
        let (finished, waited) = tokio::join!(running.finish(), wait());
        assert_eq!(finished.ok(), first);
        assert_eq!(waited.unwrap(), first.unwrap_or(2));
        assert!(idempotency.once("ship", "a").forget().await.unwrap());
    }
    let running = Running::start(idempotency.once("ship", "a"), || Ok(1)).await;
    assert!(matches!(refused(wait().await), RefusalReason::InFlight));
    assert_eq!(running.finish().await.unwrap(), 1);
}

#[tokio::test]
async fn an_abandoned_claim_is_refused_unless_the_function_may_run_again() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let once = idempotency.once("ship", "a");
    let options = BeginOptions::new(Duration::ZERO, Duration::MAX);
    drop(store.begin(&once.key, once.fingerprint.as_ref().unwrap(), &options).await.unwrap());
    for _ in 0..2 {
        let reason = refused(once.clone().run(async || count(Runs::default()).await).await);
        assert!(matches!(reason, RefusalReason::OutcomeUnknown) && !reason.is_retryable(), "{reason:?}");
    }
    assert_eq!(once.inspect().await.unwrap().unwrap().status(), KeyStatus::OutcomeUnknown);
    let rerun = once.clone().abandoned(Abandoned::Rerun).run(async || count(Runs::default()).await).await;
    assert_eq!(rerun.unwrap(), 1);
    assert_eq!(once.run(async || Err::<usize, _>(Failure::Own("ran again"))).await.unwrap(), 1);
}

#[tokio::test]
async fn an_operator_settles_an_unknown_outcome() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let abandon = async |once: &Once| {
        let options = BeginOptions::new(Duration::ZERO, Duration::MAX);
        drop(store.begin(&once.key, once.fingerprint.as_ref().unwrap(), &options).await.unwrap());
    };
    let run = async |once: Once| once.run(async || Ok::<_, Failure>("ran".to_owned())).await;

    let with_value = idempotency.once("ship", "a");
    abandon(&with_value).await;
    assert_eq!(with_value.settle(Outcome::value(&"parcel 4").unwrap()).await.unwrap(), Settled::Now);
    assert_eq!(with_value.settle(Outcome::value(&"parcel 4").unwrap()).await.unwrap(), Settled::Already);
    assert_eq!(run(with_value).await.unwrap(), "parcel 4");

    let released = idempotency.once("ship", "b");
    abandon(&released).await;
    assert_eq!(released.settle(Outcome::Release).await.unwrap(), Settled::Now);
    assert_eq!(run(released.clone()).await.unwrap(), "ran");
    let settled = released.settle(Outcome::Release).await;
    assert!(matches!(settled, Err(SettleError::NotUnknown(KeyStatus::Recorded))), "{settled:?}");

    let free = idempotency.once("ship", "c").settle(Outcome::Release).await;
    assert!(matches!(free, Err(SettleError::Free)), "{free:?}");
}

#[tokio::test]
async fn a_value_lives_for_its_ttl() {
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
    let runs = Runs::default();
    let ttl = Duration::from_secs(7 * 86_400);
    let run = || {
        let runs = Arc::clone(&runs);
        idempotency.once("ship", "a").ttl(ttl).run(async move || count(runs).await)
    };
    assert_eq!(run().await.unwrap(), 1);
    clock.advance(ttl - Duration::from_nanos(1));
    assert_eq!(run().await.unwrap(), 1);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(run().await.unwrap(), 2);
}

#[tokio::test]
async fn keys_of_functions_and_keys_of_handlers_never_meet() {
    let key = Key::parse(b"order-1").unwrap();
    let engines = ["", "shop", "blog"].map(|name| Idempotency::builder(MemoryStore::new()).namespace(name).build());
    let mut keys = Vec::new();
    for engine in &engines {
        keys.push(engine.storage_key(&Scope::GLOBAL, &key));
        keys.push(engine.storage_key(&Scope::arguments().with(b"ship"), &key));
        for (scope, key) in [("", "order-1"), ("ship", "order-1"), ("shi", "porder-1"), ("shiporder-1", "")] {
            keys.push(engine.once(scope, key).key);
        }
        // The scope of a handler as it is hashed.
        let encoded = [&b"a"[..], &4_u64.to_le_bytes(), b"ship"].concat();
        keys.push(engine.once(encoded, "order-1").key);
        keys.push(engine.once(b"\xff\x00", b"\x00\xff").key);
    }
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

#[tokio::test]
async fn an_operator_sees_the_scope_and_forgets_the_value() {
    let idempotency = Idempotency::in_memory();
    let once = || idempotency.once(b"ship\n\xff", "a");
    assert!(!once().forget().await.unwrap());
    assert_eq!(once().run(async || count(Runs::default()).await).await.unwrap(), 1);
    let report = once().inspect().await.unwrap().unwrap();
    assert_eq!((report.status(), report.endpoint()), (KeyStatus::Recorded, Some("once ship\u{fffd}\u{fffd}")));
    assert_eq!(report.content().unwrap(), &b"J1"[..]);
    assert!(once().forget().await.unwrap());
    assert_eq!(once().run(async || Ok::<usize, Failure>(2)).await.unwrap(), 2);
    assert!(format!("{:?}", once()).contains("once ship"));
    assert!(name(&[b'x'; 10_000]).as_str().ends_with('…'));
}

#[test]
fn refusals_that_a_wait_may_cure_are_retryable() {
    let unreadable = RefusalReason::StoreUnavailable(StoreError::unreadable("damaged"));
    for (reason, retryable) in [
        (RefusalReason::InFlight, true),
        (RefusalReason::StoreUnavailable(StoreError::unavailable("down")), true),
        (RefusalReason::StoreFull, true),
        (RefusalReason::TooManyExecutions, true),
        (unreadable, false),
        (RefusalReason::Mismatch, false),
        (RefusalReason::OutcomeUnknown, false),
        (RefusalReason::NotReplayable, false),
    ] {
        assert_eq!(reason.is_retryable(), retryable, "{reason:?}");
    }
}

/// What the crates for errors need.
#[test]
fn a_refusal_is_an_error_that_may_cross_threads() {
    fn check<T: std::error::Error + Clone + Send + Sync + 'static>() {}
    check::<RefusalReason>();
    let unavailable = RefusalReason::StoreUnavailable(StoreError::unavailable("down"));
    assert!(std::error::Error::source(&unavailable).is_some_and(|source| source.is::<StoreError>()));
    assert!(std::error::Error::source(&RefusalReason::InFlight).is_none());
}

/// A function nested in a function has its own claim, and its large future takes no stack.
#[tokio::test]
async fn functions_nest_and_may_be_large() {
    let idempotency = Idempotency::in_memory();
    let inner = idempotency.clone();
    let outer: Result<usize, Failure> = idempotency
        .once("outer", "a")
        .run(async move || {
            let large = [1_u8; 256 * 1024];
            let sum = inner.once("inner", "a").run(async || count(Runs::default()).await).await?;
            Ok(sum + large.iter().map(|&byte| usize::from(byte)).sum::<usize>())
        })
        .await;
    assert_eq!(outer.unwrap(), 1 + 256 * 1024);
}

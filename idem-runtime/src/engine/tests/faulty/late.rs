//! A store whose replies come late, or not at all, before the handler starts.

use super::*;
use crate::engine::begin::Pending;
use crate::engine::decide::Blocked;
use crate::execution_info::ExecutionInfo;

#[tokio::test]
async fn a_begin_that_is_pending_when_the_request_goes_is_not_cut_in_half() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(0)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    let mut first = Box::pin(idempotency.run(attempt, handler.run(response("one"))));
    assert!(std::future::poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await.is_pending());
    drop(first);
    store.0.gate.as_ref().unwrap().add_permits(2);
    idempotency.drain().await;
    assert_eq!(handler.runs(), 1, "the task that owns `begin` owns the handler, too");
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "one");
}

#[tokio::test]
async fn a_pending_begin_that_finds_a_record_gives_a_replay() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(1)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
    let mut second = Box::pin(idempotency.run(attempt, handler.run(response("two"))));
    assert!(std::future::poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx))).await.is_pending());
    store.0.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(recorded(second.await), "one");
}

#[tokio::test(start_paused = true)]
async fn a_begin_without_a_reply_is_refused_and_a_late_claim_is_released() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(0)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let handler = Handler::ready();
    let refused = idempotency.run(attempt("a", "x"), handler.run(response("one"))).await;
    assert!(matches!(refused, Err(RefusalReason::StoreUnavailable(_))), "{refused:?}");
    assert_eq!(idempotency.executions(), 0, "no handler is running");
    store.0.gate.as_ref().unwrap().add_permits(1);
    idempotency.drain().await;
    assert_eq!(handler.runs(), 0);
    assert!(store.0.map.lock().unwrap().is_empty(), "the client was told that nothing was done");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_replies_does_not_keep_drain_waiting_for_ever() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(0)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let refused = idempotency.run(attempt("a", "x"), Handler::ready().run(response("one"))).await;
    assert!(matches!(refused, Err(RefusalReason::StoreUnavailable(_))), "{refused:?}");
    idempotency.drain().await;
    let mut locks = idempotency.handle.core.expiry_locks.iter();
    assert!(locks.all(|lock| lock.try_lock().is_ok()), "no lock is left behind");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_wait_longer_because_the_store_is_slow() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(1)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::from_secs(2));
    store.0.map.lock().unwrap().insert(attempt.key, None);
    let asked = Instant::now();
    // The store replies to the first look at once, and to no later one.
    let refused = idempotency.run(attempt, Handler::ready().run(response("one"))).await;
    assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
    assert!(asked.elapsed() <= Duration::from_secs(4), "{:?}", asked.elapsed());
    // A claim that is granted later is released.
    store.0.map.lock().unwrap().clear();
    store.0.gate.as_ref().unwrap().add_permits(1);
    idempotency.drain().await;
    assert!(store.0.map.lock().unwrap().is_empty());
}

/// As a store that is slow, and whose claim is abandoned again and again: another waiter is always faster.
struct AlwaysTaken;

impl Hooks<Faulty> for AlwaysTaken {
    async fn begin(
        &self,
        store: &Faulty,
        key: &StorageKey,
        _: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<FaultyClaim>, StoreError> {
        tokio::time::sleep(Duration::from_millis(700)).await;
        Ok(Begin::Abandoned(FaultyClaim(store.clone(), *key)))
    }

    async fn renew(&self, _: &mut FaultyClaim, _: Duration) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(700)).await;
        Err(StoreError::Lost)
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_first_to_take_over_is_refused_in_the_end() {
    let idempotency = Idempotency::new(Intercept::new(Faulty::default(), AlwaysTaken));
    let mut attempt = attempt("a", "x");
    attempt.rules.abandoned = Abandoned::Rerun;
    let core = Arc::clone(&idempotency.handle.core);
    let info = ExecutionInfo::start(&attempt, core.clock.now());
    for time_left in [Some(Duration::from_secs(2)), None] {
        let asked_at = Instant::now();
        let pending = Pending::Asked(core.begin(&attempt, info.clone()), asked_at);
        let start = Arc::clone(&core).start(attempt, info.clone(), pending, time_left);
        let blocked = tokio::time::timeout(Duration::from_secs(60), start).await.expect("it asks for ever");
        let blocked = blocked.err().map(|blocked| match blocked {
            Blocked::Refuse(reason) => reason,
            _ => panic!("{time_left:?}: there is nothing to replay and nothing to wait for"),
        });
        assert!(matches!(blocked, Some(RefusalReason::InFlight)), "{time_left:?}: {blocked:?}");
        let longest = time_left.unwrap_or(Duration::from_secs(5)) + Duration::from_secs(1);
        assert!(asked_at.elapsed() <= longest, "{time_left:?}: {:?}", asked_at.elapsed());
    }
}

/// As a store that has gone.
struct NeverReplies;

impl Hooks<Faulty> for NeverReplies {
    async fn begin(
        &self,
        _: &Faulty,
        _: &StorageKey,
        _: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<FaultyClaim>, StoreError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_time_left_does_not_wait_for_a_store_that_has_gone() {
    let idempotency = Idempotency::new(Intercept::new(Faulty::default(), NeverReplies));
    let (core, attempt) = (Arc::clone(&idempotency.handle.core), attempt("a", "x"));
    let info = ExecutionInfo::start(&attempt, core.clock.now());
    let asked_at = Instant::now();
    let pending = Pending::Asked(core.begin(&attempt, info.clone()), asked_at);
    let blocked = core.start(attempt, info, pending, Some(Duration::from_secs(60))).await;
    assert!(blocked.is_err() && asked_at.elapsed() <= Duration::from_secs(6), "{:?}", asked_at.elapsed());
}

/// As a store far away that does not judge expiry: what it was told to forget, it forgets later.
struct LateForgets {
    asked: Arc<Notify>,
    may_forget: Arc<Gate>,
}

impl Hooks<Faulty> for LateForgets {
    async fn forget(&self, store: &Faulty, key: &StorageKey) -> Result<bool, StoreError> {
        let (store, key) = (store.clone(), *key);
        let (asked, may_forget) = (Arc::clone(&self.asked), Arc::clone(&self.may_forget));
        let forgotten = tokio::spawn(async move {
            asked.notify_one();
            may_forget.acquire().await.unwrap().forget();
            store.forget(&key).await
        });
        forgotten.await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_forget_removes_no_live_record() {
    let store =
        Intercept::new(Faulty::default(), LateForgets { asked: Arc::default(), may_forget: Arc::new(Gate::new(0)) });
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(3)).clock(clock.clone()).build();
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
    clock.advance(Rules::DEFAULT.ttl);
    // The store replies too late to the one, and may forget at any time what it finds.
    for _ in 0..3 {
        let refused = idempotency.run(attempt, handler.run(response("two"))).await;
        assert!(matches!(refused, Err(RefusalReason::StoreUnavailable(_))), "{refused:?}");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    store.hooks.may_forget.add_permits(1);
    idempotency.drain().await;
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("two"))).await), 2);
    store.hooks.may_forget.add_permits(10);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("three"))).await), "two");
}

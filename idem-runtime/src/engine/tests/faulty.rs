//! The engine over a store that fails.

use super::super::complete::{ClaimCompletion, ClaimEnd};
use super::*;
use crate::clock::Timestamp;
use crate::execution_info::ExecutionInfo;

/// A plain map with faults: what the engine must make up for.
#[derive(Clone, Default)]
pub(super) struct Faulty(Arc<Faults>);

#[derive(Default)]
pub(super) struct Faults {
    map: Mutex<HashMap<StorageKey, Option<Record>>>,
    /// `begin` waits for a permit, if there is a gate.
    gate: Option<Gate>,
    fail_begin: bool,
    /// `begin` finds something that it cannot read.
    damaged: bool,
    /// How many completions fail before one succeeds.
    fail_completions: AtomicUsize,
    renewed_at: Mutex<Vec<Instant>>,
    lost: bool,
    /// What the store keeps of a record whose completion it reports as lost.
    keeps: Option<fn(&Record) -> Record>,
    /// What `complete`, `release` and `renew` do instead.
    step: Step,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Step {
    #[default]
    Works,
    Hangs,
    Panics,
}

impl Step {
    async fn take(self) {
        match self {
            Self::Works => {}
            Self::Hangs => std::future::pending().await,
            Self::Panics => panic!("on purpose"),
        }
    }
}

pub(super) struct FaultyClaim(Faulty, StorageKey);

impl Store for Faulty {
    type Claim = FaultyClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<FaultyClaim>, StoreError> {
        if let Some(gate) = &self.0.gate {
            gate.acquire().await.unwrap().forget();
        }
        if self.0.fail_begin {
            return Err(StoreError::unavailable("the network is down"));
        }
        if self.0.damaged {
            return Err(StoreError::unreadable("its checksum does not fit"));
        }
        Ok(match self.0.map.lock().unwrap().entry(*key) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(None);
                Begin::Claimed(FaultyClaim(self.clone(), *key))
            }
            std::collections::hash_map::Entry::Occupied(taken) => match taken.get() {
                Some(record) => Begin::Completed(record.clone()),
                None => Begin::InFlight(*fingerprint),
            },
        })
    }

    async fn ended(&self, _: &StorageKey) {}

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.0.map.lock().unwrap().remove(key).is_some())
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        let map = self.0.map.lock().unwrap();
        Ok(map.get(key).and_then(Option::as_ref).map(|record| StoredEntry::new(KeyState::Completed(record.clone()))))
    }
}

impl Claim for FaultyClaim {
    async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
        self.0.0.step.take().await;
        self.0.0.renewed_at.lock().unwrap().push(Instant::now());
        if self.0.0.lost { Err(StoreError::Lost) } else { Ok(()) }
    }

    async fn complete(self, record: Record, _: Duration) -> Result<(), StoreError> {
        self.0.0.step.take().await;
        if let Some(keeps) = self.0.0.keeps {
            self.0.0.map.lock().unwrap().insert(self.1, Some(keeps(&record)));
        }
        if self.0.0.lost {
            return Err(StoreError::Lost);
        }
        let failures = &self.0.0.fail_completions;
        if failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::unavailable("the network is down"));
        }
        self.0.0.map.lock().unwrap().insert(self.1, Some(record));
        Ok(())
    }

    async fn release(self) -> Result<(), StoreError> {
        self.0.0.step.take().await;
        self.0.0.map.lock().unwrap().remove(&self.1);
        Ok(())
    }

    fn try_clone(&self) -> Option<Self> {
        Some(Self(self.0.clone(), self.1))
    }
}

#[tokio::test]
async fn a_store_that_fails_refuses_and_the_handler_does_not_start() {
    let store = Faulty(Arc::new(Faults { fail_begin: true, ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let handler = Handler::ready();
    let refused = idempotency.run(attempt("a", "x"), handler.run(response("one"))).await;
    assert!(matches!(refused, Err(RefusalReason::StoreUnavailable(_))), "{refused:?}");
    assert_eq!(handler.runs(), 0);
}

#[tokio::test]
async fn what_cannot_be_read_lets_no_handler_run_without_protection_and_a_store_that_is_down_does() {
    for damaged in [true, false] {
        let store = Faulty(Arc::new(Faults { damaged, fail_begin: !damaged, ..Faults::default() }));
        let handler = Handler::ready();
        let mut attempt = attempt("a", "x");
        attempt.rules.run_without_store = true;
        let result = Idempotency::new(store).run(attempt, handler.run(response("one"))).await;
        match result {
            Err(RefusalReason::StoreUnavailable(StoreError::Unreadable(_))) if damaged => {}
            Ok(RunResult::Executed(1)) if !damaged => {}
            other => panic!("{damaged}: {other:?}"),
        }
        assert_eq!(handler.runs(), usize::from(!damaged));
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_fails_is_repeated_and_the_response_is_sent() {
    let store = Faulty(Arc::new(Faults { fail_completions: AtomicUsize::new(5), ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
    idempotency.drain().await;
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "one");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_down_leaves_the_claim_and_never_releases_it() {
    let store = Faulty(Arc::new(Faults { fail_completions: AtomicUsize::new(usize::MAX), ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
    idempotency.drain().await;
    let retry = idempotency.run(attempt, handler.run(response("two"))).await;
    assert!(matches!(retry, Err(RefusalReason::InFlight)), "{retry:?}");
    assert_eq!(handler.runs(), 1);
}

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

#[tokio::test]
async fn the_engine_expires_records_of_stores_that_do_not() {
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(Faulty::default()).clock(clock.clone()).build();
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
    clock.advance(Rules::DEFAULT.ttl - Duration::from_nanos(1));
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "one");
    clock.advance(Duration::from_nanos(1));
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("two"))).await), 2);
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("three"))).await), "two");
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_three_times_in_its_span_while_the_handler_runs() {
    for lost in [false, true] {
        let store = Faulty(Arc::new(Faults { lost, ..Faults::default() }));
        let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(30)).build();
        let slow = |_| async {
            tokio::time::sleep(Duration::from_secs(95)).await;
            Executed { response: 1, recording: Recording::Done(response("slow")) }
        };
        assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
        assert_eq!(store.0.renewed_at.lock().unwrap().len(), if lost { 1 } else { 9 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_learns_that_its_lease_was_lost() {
    let lost = Faulty(Arc::new(Faults { lost: true, ..Faults::default() }));
    for (store, is_lost) in [(Faulty::default(), false), (lost, true)] {
        let idempotency = Idempotency::builder(store).lease(Duration::from_secs(30)).build();
        let handler = |lease: Lease| async move {
            assert!(!lease.is_lost(), "the store was not asked yet");
            let told = tokio::time::timeout(Duration::from_secs(60), lease.lost()).await.is_ok();
            let is_lost = told && lease.is_lost();
            Executed { response: usize::from(is_lost), recording: Recording::Done(response("slow")) }
        };
        assert_eq!(ran(idempotency.run(attempt("a", "x"), handler).await), usize::from(is_lost));
    }
}

#[tokio::test]
async fn a_response_is_withheld_only_if_another_run_may_have_given_one() {
    for (abandoned, is_sent) in [(Abandoned::Refuse, true), (Abandoned::Rerun, false)] {
        let idempotency = Idempotency::new(Faulty(Arc::new(Faults { lost: true, ..Faults::default() })));
        let mut attempt = attempt("a", "x");
        attempt.rules.abandoned = abandoned;
        let handler = Handler::ready();
        match idempotency.run(attempt, handler.run(response("one"))).await {
            Ok(RunResult::Executed(1)) if is_sent => {}
            Err(RefusalReason::OutcomeUnknown) if !is_sent => {}
            other => panic!("{abandoned:?}: {other:?}"),
        }
        assert_eq!(handler.runs(), 1, "{abandoned:?}");
    }
}

#[tokio::test]
async fn a_response_that_streams_is_sent_before_anyone_knows_of_another_run() {
    let idempotency = Idempotency::new(Faulty(Arc::new(Faults { lost: true, ..Faults::default() })));
    let mut attempt = attempt("a", "x");
    attempt.rules.abandoned = Abandoned::Rerun;
    let live = move |_| async move {
        let recording = async move { RecordedStream { outcome: response("live"), delivery: None } };
        Executed { response: 1, recording: Recording::Live(Box::pin(recording)) }
    };
    assert_eq!(ran(idempotency.run(attempt, live).await), 1);
    idempotency.drain().await;
}

/// As an owner that was suspended: its time is up when it goes on, and then the store says that another run took the claim over.
struct LateLoss;

impl Hooks<Faulty> for LateLoss {
    async fn complete(&self, _: FaultyClaim, _: Record, _: Duration) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        Err(StoreError::Lost)
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_suspended_learns_of_the_run_that_took_over_before_it_responds() {
    for (abandoned, is_sent) in [(Abandoned::Refuse, true), (Abandoned::Rerun, false)] {
        let store = Intercept::new(Faulty::default(), LateLoss);
        let idempotency = Idempotency::builder(store).lease(Duration::from_secs(30)).build();
        let mut attempt = attempt("a", "x");
        attempt.rules.abandoned = abandoned;
        match idempotency.run(attempt, Handler::ready().run(response("one"))).await {
            Ok(RunResult::Executed(1)) if is_sent => {}
            Err(RefusalReason::OutcomeUnknown) if !is_sent => {}
            other => panic!("{abandoned:?}: {other:?}"),
        }
    }
}

/// As a store that may have said of a renewal that another run took the claim over. When the handler has ended, it fails and cannot be
/// asked again, or does not reply.
struct Gone {
    has_said_lost: bool,
    replies: bool,
}

impl Hooks<Faulty> for Gone {
    async fn renew(&self, _: &mut FaultyClaim, _: Duration) -> Result<(), StoreError> {
        if self.has_said_lost { Err(StoreError::Lost) } else { Ok(()) }
    }

    async fn complete(&self, _: FaultyClaim, _: Record, _: Duration) -> Result<(), StoreError> {
        if self.replies { Err(StoreError::unavailable("the network is down")) } else { std::future::pending().await }
    }

    fn try_clone(&self, _: &FaultyClaim) -> Option<FaultyClaim> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_knows_of_the_run_that_took_over_does_not_need_the_store_to_say_so_again() {
    let (both, policies) = ([false, true], [Abandoned::Refuse, Abandoned::Rerun]);
    let cases = policies.into_iter().flat_map(|abandoned| both.map(|streams| (abandoned, streams)));
    let cases = cases.flat_map(|case| both.map(|has_said_lost| (case, has_said_lost)));
    let cases = cases.flat_map(|case| both.map(|replies| (case, replies)));
    for (((abandoned, streams), has_said_lost), replies) in cases {
        let is_sent = !(has_said_lost && abandoned == Abandoned::Rerun);
        let store = Intercept::new(Faulty::default(), Gone { has_said_lost, replies });
        let idempotency = Idempotency::builder(store).lease(Duration::from_secs(30)).build();
        let mut attempt = attempt("a", "x");
        attempt.rules.abandoned = abandoned;
        let (recorded, is_recorded) = oneshot::channel();
        let stream = async move {
            recorded.send(()).unwrap();
            RecordedStream { outcome: response("late"), delivery: None }
        };
        let handler = move |lease: Lease| async move {
            if has_said_lost {
                lease.lost().await;
            }
            let done = Recording::Done(response("late"));
            Executed { response: 1, recording: if streams { Recording::Live(Box::pin(stream)) } else { done } }
        };
        match idempotency.run(attempt, handler).await {
            Ok(RunResult::Executed(1)) if is_sent => {}
            Err(RefusalReason::OutcomeUnknown) if !is_sent => {}
            other => panic!("{abandoned:?}, streams: {streams}, lost: {has_said_lost}, replies: {replies}: {other:?}"),
        }
        assert_eq!(is_recorded.await.is_ok(), streams, "{abandoned:?}: a stream flows to its end");
    }
}

/// As a store that has said of a renewal that the claim was taken over, and then takes the record: the claim was still there.
struct LostAndFound;

impl Hooks<Faulty> for LostAndFound {
    async fn renew(&self, _: &mut FaultyClaim, _: Duration) -> Result<(), StoreError> {
        Err(StoreError::Lost)
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_recorded_is_sent_whatever_a_renewal_has_said() {
    let store = Intercept::new(Faulty::default(), LostAndFound);
    let idempotency = Idempotency::builder(store).lease(Duration::from_secs(30)).build();
    let mut attempt = attempt("a", "x");
    attempt.rules.abandoned = Abandoned::Rerun;
    let handler = |lease: Lease| async move {
        lease.lost().await;
        Executed { response: 1, recording: Recording::Done(response("in time")) }
    };
    assert!(matches!(idempotency.run(attempt, handler).await, Ok(RunResult::Executed(1))));
}

#[tokio::test]
async fn a_completion_that_has_reached_the_store_is_not_lost() {
    let same = |record: &Record| record.clone();
    let without_room = |record: &Record| record.tombstone();
    let settled = |record: &Record| Record::without_content(*record.fingerprint(), record.execution_info().as_ref());
    for (keeps, is_recorded) in [(same as fn(&Record) -> Record, true), (without_room, true), (settled, false)] {
        let store = Faulty(Arc::new(Faults { lost: true, keeps: Some(keeps), ..Faults::default() }));
        let idempotency = Idempotency::builder(store).lease(Duration::from_secs(30)).build();
        let mut attempt = attempt("a", "x");
        // Another run may have responded, so only a response that was recorded is sent.
        attempt.rules.abandoned = Abandoned::Rerun;
        match idempotency.run(attempt, Handler::ready().run(response("one"))).await {
            Ok(RunResult::Executed(1)) if is_recorded => {}
            Err(RefusalReason::OutcomeUnknown) if !is_recorded => {}
            other => panic!("{is_recorded}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_between_the_tries_of_a_completion() {
    let lease = Duration::from_secs(3);
    let store = Faulty(Arc::new(Faults { fail_completions: AtomicUsize::new(100), ..Faults::default() }));
    let idempotency = Idempotency::builder(store.clone()).lease(lease).build();
    assert_eq!(ran(idempotency.run(attempt("a", "x"), Handler::ready().run(response("one"))).await), 1);
    idempotency.drain().await;
    let renewed_at = store.0.renewed_at.lock().unwrap();
    assert_eq!(renewed_at.len(), 100);
    for pair in renewed_at.windows(2) {
        assert!(pair[1] - pair[0] < lease, "{:?}", pair[1] - pair[0]);
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_an_error_and_never_a_miss() {
    let store = Faulty::default();
    let idempotency = Idempotency::new(store.clone());
    let attempt = attempt("a", "x");
    let damaged = Record::new(attempt.fingerprint, Bytes::from_static(b"nonsense"));
    store.0.map.lock().unwrap().insert(attempt.key, Some(damaged));
    let handler = Handler::ready();
    let refused = idempotency.run(attempt, handler.run(response("one"))).await;
    assert!(matches!(refused, Err(RefusalReason::StoreUnavailable(_))), "{refused:?}");
    assert_eq!(handler.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_wakes_without_a_reason_is_polled_and_not_hammered() {
    let store = Faulty::default();
    let idempotency = Idempotency::new(store.clone());
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::from_secs(2));
    store.0.map.lock().unwrap().insert(attempt.key, None);
    let refused = idempotency.run(attempt, Handler::ready().run(response("one"))).await;
    assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_or_panics_withholds_no_response() {
    let attempt = |key| {
        let mut attempt = attempt(key, "x");
        // For as long it is tried again.
        attempt.rules.ttl = Duration::from_secs(60);
        attempt
    };
    for step in [Step::Hangs, Step::Panics] {
        let idempotency = Idempotency::new(Faulty(Arc::new(Faults { step, ..Faults::default() })));
        let handler = Handler::ready();
        let asked = Instant::now();
        assert_eq!(ran(idempotency.run(attempt("a"), handler.run(response("one"))).await), 1);
        assert_eq!(ran(idempotency.run(attempt("b"), handler.run(Outcome::Release)).await), 2);
        let (held, free) = oneshot::channel::<()>();
        let live = move |_| async move {
            let recording =
                async move { RecordedStream { outcome: response("live"), delivery: Some(Box::new(Held(held))) } };
            Executed { response: 3, recording: Recording::Live(Box::pin(recording)) }
        };
        assert_eq!(ran(idempotency.run(attempt("c"), live).await), 3);
        let _ = free.await;
        assert!(asked.elapsed() <= Duration::from_secs(4), "{:?}", asked.elapsed());
        idempotency.drain().await;
        let retry = idempotency.run(attempt("a"), handler.run(response("two"))).await;
        assert!(matches!(retry, Err(RefusalReason::InFlight)), "the handler ran, so the claim stays: {retry:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_while_the_handler_runs_does_not_end_it() {
    let store = Faulty(Arc::new(Faults { step: Step::Panics, ..Faults::default() }));
    let idempotency = Idempotency::builder(store).lease(Duration::from_secs(3)).build();
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Executed { response: 1, recording: Recording::Done(response("slow")) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
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
async fn waiting_for_ever_is_not_too_long() {
    let store = Faulty::default();
    let idempotency = Idempotency::new(store.clone());
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::MAX);
    store.0.map.lock().unwrap().insert(attempt.key, None);
    let handler = Handler::ready();
    let waiting =
        tokio::time::timeout(Duration::from_secs(60), idempotency.run(attempt, handler.run(response("one")))).await;
    assert!(waiting.is_err(), "{waiting:?}");
}

#[tokio::test(start_paused = true)]
async fn a_completion_is_tried_for_as_long_as_the_claim_can_live() {
    for (failures, is_recorded) in [(1_000, true), (usize::MAX, false)] {
        let store = Faulty(Arc::new(Faults { fail_completions: AtomicUsize::new(failures), ..Faults::default() }));
        let idempotency = Idempotency::new(store);
        let handler = Handler::ready();
        let attempt = attempt("a", "x");
        let asked = Instant::now();
        assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
        idempotency.drain().await;
        let retry = idempotency.run(attempt, handler.run(response("two"))).await;
        if is_recorded {
            assert_eq!(recorded(retry), "one");
        } else {
            assert!(matches!(retry, Err(RefusalReason::InFlight)), "{retry:?}");
            assert!(asked.elapsed() >= Rules::DEFAULT.ttl, "{:?}", asked.elapsed());
        }
    }
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
        let pending = super::super::begin::Pending::Asked(core.begin(&attempt, info.clone()), asked_at);
        let start = Arc::clone(&core).start(attempt, info.clone(), pending, time_left);
        let blocked = tokio::time::timeout(Duration::from_secs(60), start).await.expect("it asks for ever");
        let blocked = blocked.err().map(|blocked| match blocked {
            super::super::begin::Blocked::Refuse(reason) => reason,
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
    let pending = super::super::begin::Pending::Asked(core.begin(&attempt, info.clone()), asked_at);
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

#[tokio::test]
async fn a_record_without_the_id_of_its_execution_is_not_known_by_its_tombstone() {
    let tombstone = |record: &Record| record.tombstone();
    let store = Faulty(Arc::new(Faults { lost: true, keeps: Some(tombstone), ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let core = Arc::clone(&idempotency.handle.core);
    let attempt = attempt("a", "x");
    let info = ExecutionInfo::start(&attempt, core.clock.now());
    let Ok(Begin::Claimed(claim)) = core.begin(&attempt, info).await else { panic!("a free key") };
    let mut content = RecordBuilder::new();
    content.put(b"one");
    let record = Record::with_content(attempt.fingerprint, content, Timestamp::NEVER, None);
    let (lease, ttl) = (Duration::from_secs(30), Rules::DEFAULT.ttl);
    let end = ClaimEnd::Complete(record, ttl);
    let ended = ClaimCompletion::begin(attempt.key, claim, end, Some(lease), ttl).finish(core).await;
    assert!(matches!(ended, Err(StoreError::Lost)), "{ended:?}");
}

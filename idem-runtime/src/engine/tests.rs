use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::sync::{Notify, Semaphore as Gate, oneshot};
use tokio::time::Instant;

use super::*;
use crate::clock::ManualClock;
use crate::execution::{Outcome, Recorded, Recording};
use crate::key::Key;
use crate::record::Draft;
use crate::rules::Abandoned;
use crate::scope::Scope;
use crate::store::{Begin, Claim};

fn attempt(key: &str, request: &str) -> Attempt {
    let key = Key::parse(key.as_bytes()).unwrap();
    let mut fingerprint = Fingerprint::builder();
    fingerprint.part(b'r', request.as_bytes());
    Attempt { key: StorageKey::new(&Scope::GLOBAL, &key), fingerprint: fingerprint.finish(), rules: Rules::DEFAULT }
}

fn answer(text: &str) -> Outcome {
    let mut draft = Draft::new();
    draft.put(text.as_bytes());
    Outcome::Answer(draft)
}

/// A body that counts its runs, says that it started, and ends when it may.
#[derive(Clone)]
struct Body {
    runs: Arc<AtomicUsize>,
    started: Arc<Notify>,
    go_on: Arc<Gate>,
}

impl Body {
    fn new() -> Self {
        Self { runs: Arc::default(), started: Arc::default(), go_on: Arc::new(Gate::new(0)) }
    }

    fn ready() -> Self {
        let body = Self::new();
        body.go_on.add_permits(1000);
        body
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn run(&self, outcome: Outcome) -> impl FnOnce() -> BoxFuture<Ended<usize>> + Send + use<> {
        let body = self.clone();
        move || {
            Box::pin(async move {
                let run = body.runs.fetch_add(1, Ordering::SeqCst) + 1;
                body.started.notify_one();
                body.go_on.acquire().await.unwrap().forget();
                Ended { response: run, recording: Recording::Done(outcome) }
            })
        }
    }
}

fn ran(result: Result<Answer<usize>, Refused>) -> usize {
    match result {
        Ok(Answer::Ran(run)) => run,
        other => panic!("{other:?}"),
    }
}

fn recorded(result: Result<Answer<usize>, Refused>) -> Bytes {
    match result {
        Ok(Answer::Recorded(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_body_runs_once_and_then_its_record_answers() {
    let idempotency = Idempotency::in_memory();
    let body = Body::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, body.run(answer("one"))).await), 1);
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "one");
    assert_eq!(body.runs(), 1);
}

#[tokio::test]
async fn another_fingerprint_is_refused_while_running_and_after() {
    let idempotency = Idempotency::in_memory();
    let body = Body::new();
    let mut first = Box::pin(idempotency.run(attempt("a", "x"), body.run(answer("one"))));
    tokio::select! {
        () = body.started.notified() => {}
        _ = &mut first => panic!("the body waits"),
    }
    for _ in 0..2 {
        let other = idempotency.run(attempt("a", "y"), body.run(answer("two"))).await;
        assert!(matches!(other, Err(Refused::Mismatch)), "{other:?}");
        body.go_on.add_permits(1);
        if body.runs() == 1 && idempotency.executions() > 0 {
            idempotency.drain().await;
        }
    }
    assert_eq!(ran(first.await), 1);
    assert_eq!(recorded(idempotency.run(attempt("a", "x"), body.run(answer("two"))).await), "one");
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_the_body_running_to_its_end() {
    let idempotency = Idempotency::in_memory();
    let body = Body::new();
    let attempt = attempt("a", "x");
    let mut first = Box::pin(idempotency.run(attempt, body.run(answer("one"))));
    tokio::select! {
        () = body.started.notified() => {}
        _ = &mut first => panic!("the body waits"),
    }
    drop(first);
    let second = idempotency.run(attempt, body.run(answer("two"))).await;
    assert!(matches!(second, Err(Refused::InFlight)), "{second:?}");
    body.go_on.add_permits(1);
    idempotency.drain().await;
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "one");
}

#[tokio::test]
async fn a_release_lets_the_next_attempt_run() {
    let idempotency = Idempotency::in_memory();
    let body = Body::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, body.run(Outcome::Release)).await), 1);
    assert_eq!(ran(idempotency.run(attempt, body.run(Outcome::NotReplayable)).await), 2);
    let third = idempotency.run(attempt, body.run(answer("three"))).await;
    assert!(matches!(third, Err(Refused::NotReplayable)), "{third:?}");
    assert_eq!(body.runs(), 2);
}

#[tokio::test]
async fn a_live_recording_answers_first_and_is_in_flight_until_it_ends() {
    let idempotency = Idempotency::in_memory();
    let attempt = attempt("a", "x");
    let flowed = Arc::new(Notify::new());
    let flowing = Arc::clone(&flowed);
    let (held, mut free) = tokio::sync::oneshot::channel::<()>();
    let live = move || async move {
        let recording = async move {
            flowing.notified().await;
            Recorded { outcome: answer("stream"), hold: Some(Box::new(held)) }
        };
        Ended { response: 1, recording: Recording::Live(Box::pin(recording)) }
    };
    assert_eq!(ran(idempotency.run(attempt, live).await), 1);
    let body = Body::ready();
    let second = idempotency.run(attempt, body.run(answer("two"))).await;
    assert!(matches!(second, Err(Refused::InFlight)), "{second:?}");
    assert!(free.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty), "held until recorded");
    flowed.notify_one();
    // The hold goes after the record is in place.
    let _ = free.await;
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "stream");
}

#[tokio::test(start_paused = true)]
async fn waiters_get_the_record_and_give_up_in_time() {
    let idempotency = Idempotency::in_memory();
    let body = Body::new();
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::from_secs(5));
    let first = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), body.run(answer("one")));
        async move { idempotency.run(attempt, run).await }
    });
    body.started.notified().await;
    let asked = Instant::now();
    let given_up = idempotency.run(attempt, body.run(answer("two"))).await;
    assert!(matches!(given_up, Err(Refused::InFlight)), "{given_up:?}");
    assert_eq!(asked.elapsed().as_secs(), 5, "the paused clock moves to the deadline");
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (idempotency, run) = (idempotency.clone(), body.run(answer("two")));
        waiters.spawn(async move { idempotency.run(attempt, run).await });
    }
    tokio::task::yield_now().await;
    body.go_on.add_permits(1);
    while let Some(waiter) = waiters.join_next().await {
        assert_eq!(recorded(waiter.unwrap()), "one");
    }
    assert_eq!(ran(first.await.unwrap()), 1);
    assert_eq!(body.runs(), 1);
}

#[tokio::test]
async fn a_body_that_panics_leaves_the_outcome_unknown() {
    let idempotency = Idempotency::in_memory();
    let attempt = attempt("a", "x");
    let panics = || async { panic!("on purpose") };
    let first: Result<Answer<usize>, _> = idempotency.run(attempt, panics).await;
    assert!(matches!(first, Err(Refused::OutcomeUnknown)), "{first:?}");
    let body = Body::ready();
    for _ in 0..2 {
        let again = idempotency.run(attempt, body.run(answer("one"))).await;
        assert!(matches!(again, Err(Refused::OutcomeUnknown)), "{again:?}");
    }
    let mut rerun = attempt;
    rerun.rules.abandoned = Abandoned::Rerun;
    assert_eq!(ran(idempotency.run(rerun, body.run(answer("one"))).await), 1);
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "one");
}

#[tokio::test]
async fn too_many_bodies_at_once_are_refused_and_use_nothing_up() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::builder(store.clone()).max_executions(1).build();
    let body = Body::new();
    let mut first = Box::pin(idempotency.run(attempt("a", "x"), body.run(answer("one"))));
    tokio::select! {
        () = body.started.notified() => {}
        _ = &mut first => panic!("the body waits"),
    }
    let second = idempotency.run(attempt("b", "x"), body.run(answer("two"))).await;
    assert!(matches!(second, Err(Refused::TooManyExecutions)), "{second:?}");
    assert_eq!(store.usage().entries, 1);
    body.go_on.add_permits(2);
    assert_eq!(ran(first.await), 1);
    idempotency.drain().await;
    assert_eq!(ran(idempotency.run(attempt("b", "x"), body.run(answer("two"))).await), 2);
}

/// A plain map with faults: what the engine must make up for.
#[derive(Clone, Default)]
struct Faulty(Arc<Faults>);

#[derive(Default)]
struct Faults {
    map: Mutex<HashMap<StorageKey, Option<Record>>>,
    /// `begin` waits for a permit, if there is a gate.
    gate: Option<Gate>,
    fail_begin: bool,
    /// How many completions fail before one succeeds.
    fail_completions: AtomicUsize,
    renewals: AtomicUsize,
    lost: bool,
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

struct FaultyClaim(Faulty, StorageKey);

impl Store for Faulty {
    type Claim = FaultyClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        _: Duration,
    ) -> Result<Begin<FaultyClaim>, StoreError> {
        if let Some(gate) = &self.0.gate {
            gate.acquire().await.unwrap().forget();
        }
        if self.0.fail_begin {
            return Err(StoreError::unavailable("the network is down"));
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
}

impl Claim for FaultyClaim {
    async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
        self.0.0.step.take().await;
        self.0.0.renewals.fetch_add(1, Ordering::SeqCst);
        if self.0.0.lost { Err(StoreError::Lost) } else { Ok(()) }
    }

    async fn complete(self, record: Record, _: Duration) -> Result<(), StoreError> {
        self.0.0.step.take().await;
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

    fn twin(&self) -> Option<Self> {
        Some(Self(self.0.clone(), self.1))
    }
}

#[tokio::test]
async fn a_store_that_fails_refuses_and_the_body_does_not_start() {
    let store = Faulty(Arc::new(Faults { fail_begin: true, ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let body = Body::ready();
    let refused = idempotency.run(attempt("a", "x"), body.run(answer("one"))).await;
    assert!(matches!(refused, Err(Refused::StoreUnavailable(_))), "{refused:?}");
    assert_eq!(body.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_fails_is_repeated_and_the_answer_goes_out() {
    let store = Faulty(Arc::new(Faults { fail_completions: AtomicUsize::new(5), ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let body = Body::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, body.run(answer("one"))).await), 1);
    idempotency.drain().await;
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "one");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_down_leaves_the_claim_and_never_releases_it() {
    let store = Faulty(Arc::new(Faults { fail_completions: AtomicUsize::new(usize::MAX), ..Faults::default() }));
    let idempotency = Idempotency::new(store);
    let body = Body::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, body.run(answer("one"))).await), 1);
    idempotency.drain().await;
    let retry = idempotency.run(attempt, body.run(answer("two"))).await;
    assert!(matches!(retry, Err(Refused::InFlight)), "{retry:?}");
    assert_eq!(body.runs(), 1);
}

#[tokio::test]
async fn a_begin_that_is_pending_when_the_request_goes_is_not_cut_in_half() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(0)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let body = Body::ready();
    let attempt = attempt("a", "x");
    let mut first = Box::pin(idempotency.run(attempt, body.run(answer("one"))));
    assert!(std::future::poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await.is_pending());
    drop(first);
    store.0.gate.as_ref().unwrap().add_permits(2);
    idempotency.drain().await;
    assert_eq!(body.runs(), 1, "the task that owns `begin` owns the body, too");
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "one");
}

#[tokio::test]
async fn a_pending_begin_that_finds_a_record_gives_the_answer() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(1)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let body = Body::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, body.run(answer("one"))).await), 1);
    let mut second = Box::pin(idempotency.run(attempt, body.run(answer("two"))));
    assert!(std::future::poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx))).await.is_pending());
    store.0.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(recorded(second.await), "one");
}

#[tokio::test]
async fn the_engine_expires_records_of_stores_that_do_not() {
    let clock = ManualClock::new();
    let idempotency = Idempotency::builder(Faulty::default()).clock(clock.clone()).build();
    let body = Body::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, body.run(answer("one"))).await), 1);
    clock.advance(Rules::DEFAULT.ttl - Duration::from_nanos(1));
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("two"))).await), "one");
    clock.advance(Duration::from_nanos(1));
    assert_eq!(ran(idempotency.run(attempt, body.run(answer("two"))).await), 2);
    assert_eq!(recorded(idempotency.run(attempt, body.run(answer("three"))).await), "two");
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_three_times_in_its_span_while_the_body_runs() {
    for lost in [false, true] {
        let store = Faulty(Arc::new(Faults { lost, ..Faults::default() }));
        let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(30)).build();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(95)).await;
            Ended { response: 1, recording: Recording::Done(answer("slow")) }
        };
        assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
        assert_eq!(store.0.renewals.load(Ordering::SeqCst), if lost { 1 } else { 9 });
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_an_error_and_never_a_miss() {
    let store = Faulty::default();
    let idempotency = Idempotency::new(store.clone());
    let attempt = attempt("a", "x");
    let damaged = Record::new(attempt.fingerprint, Bytes::from_static(b"nonsense"));
    store.0.map.lock().unwrap().insert(attempt.key, Some(damaged));
    let body = Body::ready();
    let refused = idempotency.run(attempt, body.run(answer("one"))).await;
    assert!(matches!(refused, Err(Refused::StoreUnavailable(_))), "{refused:?}");
    assert_eq!(body.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_wakes_without_a_reason_is_polled_and_not_hammered() {
    let store = Faulty::default();
    let idempotency = Idempotency::new(store.clone());
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::from_secs(2));
    store.0.map.lock().unwrap().insert(attempt.key, None);
    let refused = idempotency.run(attempt, Body::ready().run(answer("one"))).await;
    assert!(matches!(refused, Err(Refused::InFlight)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_or_panics_withholds_no_answer() {
    for step in [Step::Hangs, Step::Panics] {
        let idempotency = Idempotency::new(Faulty(Arc::new(Faults { step, ..Faults::default() })));
        let body = Body::ready();
        let asked = Instant::now();
        assert_eq!(ran(idempotency.run(attempt("a", "x"), body.run(answer("one"))).await), 1);
        assert_eq!(ran(idempotency.run(attempt("b", "x"), body.run(Outcome::Release)).await), 2);
        let (held, free) = oneshot::channel::<()>();
        let live = move || async move {
            let recording = async move { Recorded { outcome: answer("live"), hold: Some(Box::new(held)) } };
            Ended { response: 3, recording: Recording::Live(Box::pin(recording)) }
        };
        assert_eq!(ran(idempotency.run(attempt("c", "x"), live).await), 3);
        let _ = free.await;
        assert!(asked.elapsed() <= Duration::from_secs(4), "{:?}", asked.elapsed());
        idempotency.drain().await;
        let retry = idempotency.run(attempt("a", "x"), body.run(answer("two"))).await;
        assert!(matches!(retry, Err(Refused::InFlight)), "the body ran, so the claim stays: {retry:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_while_the_body_runs_does_not_end_the_body() {
    let store = Faulty(Arc::new(Faults { step: Step::Panics, ..Faults::default() }));
    let idempotency = Idempotency::builder(store).lease(Duration::from_secs(3)).build();
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ended { response: 1, recording: Recording::Done(answer("slow")) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_begin_without_an_answer_is_refused_and_a_late_claim_goes_back() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(0)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let body = Body::ready();
    let refused = idempotency.run(attempt("a", "x"), body.run(answer("one"))).await;
    assert!(matches!(refused, Err(Refused::StoreUnavailable(_))), "{refused:?}");
    assert_eq!(idempotency.executions(), 0, "no body is running");
    store.0.gate.as_ref().unwrap().add_permits(1);
    idempotency.drain().await;
    assert_eq!(body.runs(), 0);
    assert!(store.0.map.lock().unwrap().is_empty(), "the client was told that nothing was done");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_does_not_keep_drain_waiting_for_ever() {
    let store = Faulty(Arc::new(Faults { gate: Some(Gate::new(0)), ..Faults::default() }));
    let idempotency = Idempotency::new(store.clone());
    let refused = idempotency.run(attempt("a", "x"), Body::ready().run(answer("one"))).await;
    assert!(matches!(refused, Err(Refused::StoreUnavailable(_))), "{refused:?}");
    idempotency.drain().await;
    assert!(idempotency.handle.core.expirer.is_idle(), "no mutex is left behind");
}

#[tokio::test]
async fn an_abandoned_claim_is_not_freed_for_want_of_a_place() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::builder(store.clone()).max_executions(1).build();
    let body = Body::new();
    let lost = attempt("a", "x");
    drop(store.begin(&lost.key, &lost.fingerprint, Duration::ZERO).await.unwrap());
    let mut first = Box::pin(idempotency.run(attempt("b", "x"), body.run(answer("one"))));
    tokio::select! {
        () = body.started.notified() => {}
        _ = &mut first => panic!("the body waits"),
    }
    let mut rerun = lost;
    rerun.rules.abandoned = Abandoned::Rerun;
    let refused = idempotency.run(rerun, body.run(answer("two"))).await;
    assert!(matches!(refused, Err(Refused::TooManyExecutions)), "{refused:?}");
    let other = idempotency.run(attempt("a", "y"), body.run(answer("three"))).await;
    assert!(matches!(other, Err(Refused::Mismatch)), "{other:?}");
    body.go_on.add_permits(2);
    assert_eq!(ran(first.await), 1);
    idempotency.drain().await;
    assert_eq!(ran(idempotency.run(rerun, body.run(answer("two"))).await), 2);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_ever_is_not_too_long() {
    let store = Faulty::default();
    let idempotency = Idempotency::new(store.clone());
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::MAX);
    store.0.map.lock().unwrap().insert(attempt.key, None);
    let body = Body::ready();
    let waiting =
        tokio::time::timeout(Duration::from_secs(60), idempotency.run(attempt, body.run(answer("one")))).await;
    assert!(waiting.is_err(), "{waiting:?}");
}

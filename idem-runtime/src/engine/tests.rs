use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::sync::{Notify, Semaphore as Gate, oneshot};
use tokio::time::Instant;

use super::dyn_store::BoxFuture;
use super::*;
use crate::attempt::{Abandoned, Attempt, Rules};
use crate::clock::ManualClock;
use crate::endpoint::Endpoint;
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::lease::Lease;
use crate::memory::MemoryClaim;
use crate::outcome::{Delivery, Executed, Outcome, RecordedStream, Recording, RefusalReason, RunResult};
use crate::record::Record;
use crate::record::RecordBuilder;
use crate::store::{Begin, BeginOptions, Claim, KeyState, StoredEntry};
use crate::test_support::intercept::{Hooks, Intercept};
use crate::trace::TraceParent;
use bytes::Bytes;

mod contained;
mod draining;
mod far;
mod faulty;
mod leases;
mod operator;
mod policy_changed;
mod transactions;
mod waiting;

fn attempt(key: &str, request: &str) -> Attempt {
    let key = Key::parse(key.as_bytes()).unwrap();
    let mut fingerprint = Fingerprint::builder();
    fingerprint.part(b'r', request.as_bytes());
    Attempt::new(StorageKey::new("", &Scope::GLOBAL, &key), fingerprint.finish(), Rules::DEFAULT)
}

fn response(text: &str) -> Outcome {
    let mut builder = RecordBuilder::new();
    builder.put(text.as_bytes());
    Outcome::Record(builder)
}

/// A handler that counts its runs, says that it started, and ends when it may.
#[derive(Clone)]
struct Handler {
    runs: Arc<AtomicUsize>,
    started: Arc<Notify>,
    may_end: Arc<Gate>,
}

impl Handler {
    fn new() -> Self {
        Self { runs: Arc::default(), started: Arc::default(), may_end: Arc::new(Gate::new(0)) }
    }

    fn ready() -> Self {
        let handler = Self::new();
        handler.may_end.add_permits(1000);
        handler
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn run(&self, outcome: Outcome) -> impl FnOnce(Lease) -> BoxFuture<Executed<usize>> + Send + use<> {
        let handler = self.clone();
        move |_| {
            Box::pin(async move {
                let run = handler.runs.fetch_add(1, Ordering::SeqCst) + 1;
                handler.started.notify_one();
                handler.may_end.acquire().await.unwrap().forget();
                Executed { response: run, recording: Recording::Done(outcome) }
            })
        }
    }
}

fn ran(result: Result<RunResult<usize>, RefusalReason>) -> usize {
    match result {
        Ok(RunResult::Executed(run)) => run,
        other => panic!("{other:?}"),
    }
}

fn recorded(result: Result<RunResult<usize>, RefusalReason>) -> Bytes {
    match result {
        Ok(RunResult::Replayed(replay)) => replay.content().clone(),
        other => panic!("{other:?}"),
    }
}

/// A caller that has everything. It goes when the claim has ended.
struct Held(oneshot::Sender<()>);

impl Delivery for Held {
    fn recorded(self: Box<Self>, _: Option<Bytes>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async { drop(self.0) })
    }
}

#[tokio::test]
async fn the_handler_runs_once_and_then_its_record_is_replayed() {
    let idempotency = Idempotency::in_memory();
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(response("one"))).await), 1);
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "one");
    assert_eq!(handler.runs(), 1);
}

#[tokio::test]
async fn another_fingerprint_is_refused_while_running_and_after() {
    let idempotency = Idempotency::in_memory();
    let handler = Handler::new();
    let mut first = Box::pin(idempotency.run(attempt("a", "x"), handler.run(response("one"))));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    for _ in 0..2 {
        let other = idempotency.run(attempt("a", "y"), handler.run(response("two"))).await;
        assert!(matches!(other, Err(RefusalReason::Mismatch)), "{other:?}");
        handler.may_end.add_permits(1);
        if handler.runs() == 1 && idempotency.executions() > 0 {
            idempotency.drain().await;
        }
    }
    assert_eq!(ran(first.await), 1);
    assert_eq!(recorded(idempotency.run(attempt("a", "x"), handler.run(response("two"))).await), "one");
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_the_handler_running_to_its_end() {
    let idempotency = Idempotency::in_memory();
    let handler = Handler::new();
    let attempt = attempt("a", "x");
    let mut first = Box::pin(idempotency.run(attempt, handler.run(response("one"))));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    drop(first);
    let second = idempotency.run(attempt, handler.run(response("two"))).await;
    assert!(matches!(second, Err(RefusalReason::InFlight)), "{second:?}");
    handler.may_end.add_permits(1);
    idempotency.drain().await;
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "one");
}

#[tokio::test]
async fn a_release_lets_the_next_attempt_run() {
    let idempotency = Idempotency::in_memory();
    let handler = Handler::ready();
    let attempt = attempt("a", "x");
    assert_eq!(ran(idempotency.run(attempt, handler.run(Outcome::Release)).await), 1);
    assert_eq!(ran(idempotency.run(attempt, handler.run(Outcome::NotReplayable)).await), 2);
    let third = idempotency.run(attempt, handler.run(response("three"))).await;
    assert!(matches!(third, Err(RefusalReason::NotReplayable)), "{third:?}");
    assert_eq!(handler.runs(), 2);
}

#[tokio::test]
async fn a_live_recording_responds_first_and_is_in_flight_until_it_ends() {
    let idempotency = Idempotency::in_memory();
    let attempt = attempt("a", "x");
    let flowed = Arc::new(Notify::new());
    let flowing = Arc::clone(&flowed);
    let (held, mut free) = tokio::sync::oneshot::channel::<()>();
    let live = move |_| async move {
        let recording = async move {
            flowing.notified().await;
            RecordedStream { outcome: response("stream"), delivery: Some(Box::new(Held(held))) }
        };
        Executed { response: 1, recording: Recording::Live(Box::pin(recording)) }
    };
    assert_eq!(ran(idempotency.run(attempt, live).await), 1);
    let handler = Handler::ready();
    let second = idempotency.run(attempt, handler.run(response("two"))).await;
    assert!(matches!(second, Err(RefusalReason::InFlight)), "{second:?}");
    assert!(free.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty), "held until recorded");
    flowed.notify_one();
    // The hold goes after the record is in place.
    let _ = free.await;
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "stream");
}

#[tokio::test(start_paused = true)]
async fn waiters_get_the_record_and_give_up_in_time() {
    let idempotency = Idempotency::in_memory();
    let handler = Handler::new();
    let mut attempt = attempt("a", "x");
    attempt.rules.wait = Some(Duration::from_secs(5));
    let first = tokio::spawn({
        let (idempotency, run) = (idempotency.clone(), handler.run(response("one")));
        async move { idempotency.run(attempt, run).await }
    });
    handler.started.notified().await;
    let asked = Instant::now();
    let given_up = idempotency.run(attempt, handler.run(response("two"))).await;
    assert!(matches!(given_up, Err(RefusalReason::InFlight)), "{given_up:?}");
    assert_eq!(asked.elapsed().as_secs(), 5, "the paused clock moves to the deadline");
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (idempotency, run) = (idempotency.clone(), handler.run(response("two")));
        waiters.spawn(async move { idempotency.run(attempt, run).await });
    }
    tokio::task::yield_now().await;
    handler.may_end.add_permits(1);
    while let Some(waiter) = waiters.join_next().await {
        assert_eq!(recorded(waiter.unwrap()), "one");
    }
    assert_eq!(ran(first.await.unwrap()), 1);
    assert_eq!(handler.runs(), 1);
}

#[tokio::test]
async fn a_handler_that_panics_leaves_the_outcome_unknown() {
    let idempotency = Idempotency::in_memory();
    let attempt = attempt("a", "x");
    let panics = |_| async { panic!("on purpose") };
    let first: Result<RunResult<usize>, _> = idempotency.run(attempt, panics).await;
    assert!(matches!(first, Err(RefusalReason::OutcomeUnknown)), "{first:?}");
    let handler = Handler::ready();
    for _ in 0..2 {
        let again = idempotency.run(attempt, handler.run(response("one"))).await;
        assert!(matches!(again, Err(RefusalReason::OutcomeUnknown)), "{again:?}");
    }
    let mut rerun = attempt;
    rerun.rules.abandoned = Abandoned::Rerun;
    assert_eq!(ran(idempotency.run(rerun, handler.run(response("one"))).await), 1);
    assert_eq!(recorded(idempotency.run(attempt, handler.run(response("two"))).await), "one");
}

#[tokio::test]
async fn too_many_executions_at_once_are_refused_and_use_nothing_up() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::builder(store.clone()).max_executions(1).build();
    let handler = Handler::new();
    let mut first = Box::pin(idempotency.run(attempt("a", "x"), handler.run(response("one"))));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    let second = idempotency.run(attempt("b", "x"), handler.run(response("two"))).await;
    assert!(matches!(second, Err(RefusalReason::TooManyExecutions)), "{second:?}");
    assert_eq!(store.usage().entries, 1);
    handler.may_end.add_permits(2);
    assert_eq!(ran(first.await), 1);
    idempotency.drain().await;
    assert_eq!(ran(idempotency.run(attempt("b", "x"), handler.run(response("two"))).await), 2);
}

#[tokio::test]
async fn an_abandoned_claim_is_not_freed_for_want_of_a_place() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::builder(store.clone()).max_executions(1).build();
    let handler = Handler::new();
    let lost = attempt("a", "x");
    drop(store.begin(&lost.key, &lost.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await.unwrap());
    let mut first = Box::pin(idempotency.run(attempt("b", "x"), handler.run(response("one"))));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    let mut rerun = lost;
    rerun.rules.abandoned = Abandoned::Rerun;
    let refused = idempotency.run(rerun, handler.run(response("two"))).await;
    assert!(matches!(refused, Err(RefusalReason::TooManyExecutions)), "{refused:?}");
    let other = idempotency.run(attempt("a", "y"), handler.run(response("three"))).await;
    assert!(matches!(other, Err(RefusalReason::Mismatch)), "{other:?}");
    handler.may_end.add_permits(2);
    assert_eq!(ran(first.await), 1);
    idempotency.drain().await;
    assert_eq!(ran(idempotency.run(rerun, handler.run(response("two"))).await), 2);
}

#[tokio::test]
async fn an_engine_tells_its_store_by_type() {
    let idempotency = Idempotency::in_memory();
    assert!(idempotency.store::<MemoryStore>().is_some());
    assert!(idempotency.store::<faulty::Faulty>().is_none());
    assert!(idempotency.once("ship", "a").store::<MemoryStore>().is_some());
    assert!(idempotency.once("ship", "a").store::<faulty::Faulty>().is_none());
}

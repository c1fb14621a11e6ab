//! The end of a claim over a store that fails: tried again, for as long as the claim can live.

use super::*;
use crate::clock::Timestamp;
use crate::engine::complete::{ClaimCompletion, ClaimEnd};
use crate::execution_info::ExecutionInfo;

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

struct NeverReleases;

impl Hooks<Faulty> for NeverReleases {
    async fn release(&self, _: FaultyClaim) -> Result<(), StoreError> {
        Err(StoreError::unavailable("as asked"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_before_the_handler_is_repeated_for_as_long_as_the_claim_can_live() {
    let lease = Duration::from_secs(60);
    for ttl in [60, 7 * 24 * 60 * 60].map(Duration::from_secs) {
        let store = Intercept::new(Faulty::default(), NeverReleases);
        let idempotency = Idempotency::builder(store).max_executions(0).lease(lease).build();
        let mut attempt = attempt("a", "x");
        attempt.rules.ttl = ttl;
        let refused = idempotency.run(attempt, Handler::ready().run(response("one"))).await;
        assert!(matches!(refused, Err(RefusalReason::TooManyExecutions)), "{refused:?}");
        let asked = Instant::now();
        idempotency.drain().await;
        let repeated = asked.elapsed();
        assert!(repeated >= lease + ttl && repeated < lease + ttl + Duration::from_secs(30), "{ttl:?}: {repeated:?}");
    }
}

/// As a network that loses the first completions: they have no reply.
struct LosesCompletions(AtomicUsize);

impl Hooks<Faulty> for LosesCompletions {
    async fn complete(&self, claim: FaultyClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        if self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return std::future::pending().await;
        }
        claim.complete(record, ttl).await
    }
}

#[tokio::test(start_paused = true)]
async fn no_lease_expires_while_a_completion_has_no_reply() {
    for lease in [2, 3, 5, 7, 30].map(Duration::from_secs) {
        let store = Intercept::new(Faulty::default(), LosesCompletions(AtomicUsize::new(10)));
        let idempotency = Idempotency::builder(store.clone()).lease(lease).build();
        let mut renewed_last = Instant::now();
        // It ends just before the first renewal.
        let handler = move |_| async move {
            tokio::time::sleep(lease * 33 / 100).await;
            Executed { response: 1, recording: Recording::Done(response("one")) }
        };
        assert_eq!(ran(idempotency.run(attempt("a", "x"), handler).await), 1);
        idempotency.drain().await;
        let renewed_at = store.store.0.renewed_at.lock().unwrap().clone();
        assert_eq!(renewed_at.len(), 10);
        for renewed_at in renewed_at {
            assert!(renewed_at - renewed_last < lease, "{lease:?}: renewed after {:?}", renewed_at - renewed_last);
            renewed_last = renewed_at;
        }
        assert_eq!(recorded(idempotency.run(attempt("a", "x"), Handler::ready().run(response("two"))).await), "one");
    }
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

/// Keeps the messages of errors.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<String>>>);

impl tracing::field::Visit for Errors {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Errors {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_claim_that_has_no_end_says_which_step_failed_and_what_retries_get() {
    let unconfirmed = "retries are refused with `outcome unknown` until it expires";
    for (faults, outcome, message) in [
        (
            Faults { lost: true, ..Faults::default() },
            response("one"),
            "the claim was lost before its end was recorded; what retries get is up to its new owner".to_owned(),
        ),
        (
            Faults { step: Step::Hangs, ..Faults::default() },
            response("one"),
            format!("could not complete the claim; {unconfirmed}"),
        ),
        (
            Faults { step: Step::Hangs, ..Faults::default() },
            Outcome::Release,
            format!("could not release the claim; {unconfirmed}"),
        ),
    ] {
        let errors = Errors::default();
        let _keeps = crate::test_support::subscriber::set_default(errors.clone());
        let idempotency = Idempotency::new(Faulty(Arc::new(faults)));
        let mut attempt = attempt("a", "x");
        attempt.rules.ttl = Duration::from_secs(60);
        assert_eq!(ran(idempotency.run(attempt, Handler::ready().run(outcome)).await), 1);
        idempotency.drain().await;
        assert_eq!(*errors.0.lock().unwrap(), [message]);
    }
}

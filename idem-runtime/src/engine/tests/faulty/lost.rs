//! An owner whose claim another run may have taken over: what it learns of that, and whether its response is sent.

use super::*;

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

//! Claims that are transactions: the engine's part, over a store in memory that opens them.

use super::far::Events;
use super::*;
use crate::caller_transaction::CallerTransaction;
use crate::transaction::TransactionSlot;

/// What the store puts into the slot.
struct Opened;

/// The store opens transactions, if it can.
#[derive(Default)]
struct Opens {
    cannot: bool,
    /// How many renewals another request forestalls.
    lost_renewals: AtomicUsize,
    begins: AtomicUsize,
    /// How often a transaction begins at once; later ones queue for a minute.
    before_queue: Option<usize>,
    /// How long each step takes.
    takes: Duration,
}

impl Hooks<MemoryStore> for Opens {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        tokio::time::sleep(self.takes).await;
        let begins = self.begins.fetch_add(1, Ordering::SeqCst);
        if self.before_queue.is_some_and(|at_once| begins >= at_once) {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let begun = store.begin(key, fingerprint, options).await?;
        if let (Begin::Claimed(_) | Begin::Abandoned(_), Some(slot), false) =
            (&begun, &options.transaction, self.cannot)
        {
            slot.put(Opened);
        }
        Ok(begun)
    }

    async fn renew(&self, claim: &mut MemoryClaim, lease: Duration) -> Result<(), StoreError> {
        tokio::time::sleep(self.takes).await;
        let lost = &self.lost_renewals;
        if lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::Lost);
        }
        claim.renew(lease).await
    }
}

fn over(hooks: Opens) -> (MemoryStore, Idempotency, Arc<Opens>) {
    let store = MemoryStore::new();
    let opens = Intercept::new(store.clone(), hooks);
    let hooks = Arc::clone(&opens.hooks);
    (store, Idempotency::builder(opens).max_executions(1).build(), hooks)
}

/// Runs a handler that takes its transaction out of the slot.
async fn run(idempotency: &Idempotency, attempt: Attempt, handler: &Handler, outcome: Outcome) -> Outcomes {
    let slot = TransactionSlot::default();
    let taken = slot.clone();
    let handler = handler.run(outcome);
    let handler = move || {
        assert!(taken.take::<Opened>().is_some(), "the transaction is open before the handler runs");
        handler(Lease::default())
    };
    let result = idempotency.run_in_transaction(attempt, slot.clone(), handler).await;
    Outcomes { result, slot }
}

struct Outcomes {
    result: Result<RunResult<usize>, RefusalReason>,
    slot: TransactionSlot,
}

#[tokio::test]
async fn a_claim_that_is_a_transaction_has_ended_before_its_response() {
    let (store, idempotency, _) = over(Opens::default());
    let handler = Handler::ready();
    assert_eq!(ran(run(&idempotency, attempt("a", "x"), &handler, Outcome::Release).await.result), 1);
    assert_eq!(store.usage().entries, 0);
    assert_eq!(ran(run(&idempotency, attempt("a", "x"), &handler, response("two")).await.result), 2);
    assert_eq!(store.usage().completed, 1);
    assert_eq!(recorded(run(&idempotency, attempt("a", "x"), &handler, response("three")).await.result), "two");
    let other = run(&idempotency, attempt("a", "y"), &handler, response("three")).await.result;
    assert!(matches!(other, Err(RefusalReason::Mismatch)), "{other:?}");
    assert_eq!(handler.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_waits_for_the_transaction_in_flight_and_gives_up_in_time() {
    let (_, idempotency, _) = over(Opens::default());
    let handler = Handler::new();
    let mut patient = attempt("a", "x");
    patient.rules.wait = Some(Duration::from_secs(5));
    let mut first = Box::pin(run(&idempotency, patient, &handler, response("one")));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    let refused = run(&idempotency, attempt("a", "x"), &handler, response("two")).await.result;
    assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
    let asked = Instant::now();
    let given_up = run(&idempotency, patient, &handler, response("two")).await.result;
    assert!(matches!(given_up, Err(RefusalReason::InFlight)), "{given_up:?}");
    assert_eq!(asked.elapsed().as_secs(), 5);
    let mut second = Box::pin(run(&idempotency, patient, &handler, response("two")));
    assert!(poll_once(&mut second).await.is_none(), "it waits");
    handler.may_end.add_permits(1);
    assert_eq!(ran(first.await.result), 1);
    assert_eq!(recorded(second.await.result), "one");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_waits_does_not_wait_longer_because_transactions_queue() {
    let (_, idempotency, _) = over(Opens { before_queue: Some(2), ..Opens::default() });
    let handler = Handler::new();
    let mut patient = attempt("a", "x");
    patient.rules.wait = Some(Duration::from_secs(5));
    let mut first = Box::pin(run(&idempotency, patient, &handler, response("one")));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    let asked = Instant::now();
    let given_up = run(&idempotency, patient, &handler, response("two")).await.result;
    assert!(matches!(given_up, Err(RefusalReason::InFlight)), "{given_up:?}");
    assert_eq!(asked.elapsed().as_secs(), 6, "a moment longer than the wait");
    handler.may_end.add_permits(1);
    assert_eq!(ran(first.await.result), 1);
    // One that was not told of an execution in flight takes its turn.
    assert_eq!(recorded(run(&idempotency, patient, &handler, response("two")).await.result), "one");
}

#[tokio::test]
async fn a_transaction_without_room_for_its_execution_leaves_the_key_as_it_was() {
    let (store, idempotency, _) = over(Opens::default());
    let lost = attempt("lost", "x");
    drop(store.begin(&lost.key, &lost.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await.unwrap());
    let handler = Handler::new();
    let mut first = Box::pin(run(&idempotency, attempt("a", "x"), &handler, response("one")));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    let mut rerun = lost;
    rerun.rules.abandoned = Abandoned::Rerun;
    for attempt in [attempt("b", "x"), rerun] {
        let refused = run(&idempotency, attempt, &handler, response("two")).await.result;
        assert!(matches!(refused, Err(RefusalReason::TooManyExecutions)), "{refused:?}");
    }
    assert_eq!(store.usage().entries, 2, "the execution that runs, and the claim whose handler may have run");
    handler.may_end.add_permits(2);
    assert_eq!(ran(first.await.result), 1);
    let refused = run(&idempotency, lost, &handler, response("two")).await.result;
    assert!(matches!(refused, Err(RefusalReason::OutcomeUnknown)), "{refused:?}");
    assert_eq!(ran(run(&idempotency, rerun, &handler, response("two")).await.result), 2);
}

#[tokio::test]
async fn the_steps_of_a_claim_are_reported_unless_the_request_has_no_key() {
    let (_, idempotency, _) = over(Opens::default());
    for (is_unkeyed, steps) in [(false, 2), (true, 0)] {
        for (key, outcome) in [("completed", response("one")), ("released", Outcome::Release)] {
            let reported = Arc::new(AtomicUsize::new(0));
            let _counts =
                crate::test_support::subscriber::set_default(Events(tracing::Level::DEBUG, Arc::clone(&reported)));
            let slot = TransactionSlot::default();
            if is_unkeyed {
                slot.set_unkeyed();
            }
            let handler = async || Executed { response: 1, recording: Recording::Done(outcome) };
            let attempt = attempt(&format!("{key}-{is_unkeyed}"), "x");
            ran(idempotency.run_in_transaction(attempt, slot, handler).await);
            assert_eq!(reported.load(Ordering::SeqCst), steps, "{key}, unkeyed: {is_unkeyed}");
        }
    }
}

#[tokio::test]
async fn a_transaction_that_another_request_forestalls_asks_again() {
    let (store, idempotency, hooks) = over(Opens { lost_renewals: AtomicUsize::new(2), ..Opens::default() });
    let mut lost = attempt("a", "x");
    lost.rules.abandoned = Abandoned::Rerun;
    drop(store.begin(&lost.key, &lost.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await.unwrap());
    assert_eq!(ran(run(&idempotency, lost, &Handler::ready(), response("one")).await.result), 1);
    assert_eq!(hooks.begins.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_is_never_first_to_take_over_is_refused_in_the_end() {
    let takes = Duration::from_millis(700);
    let (store, idempotency, _) = over(Opens { lost_renewals: usize::MAX.into(), takes, ..Opens::default() });
    let mut lost = attempt("a", "x");
    lost.rules.abandoned = Abandoned::Rerun;
    drop(store.begin(&lost.key, &lost.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await.unwrap());
    let core = &idempotency.handle.core;
    for (time_left, longest) in [(Some(Duration::from_secs(3)), 3), (None, 7)] {
        let (asked_at, slot) = (Instant::now(), TransactionSlot::default());
        let start = core.start_in_transaction(&lost, &slot, time_left);
        let started = tokio::time::timeout(Duration::from_secs(60), start).await.expect("it asks for ever");
        let is_in_flight = matches!(started, Err(super::super::decide::Blocked::Refuse(RefusalReason::InFlight)));
        assert!(is_in_flight, "{time_left:?}");
        assert!(asked_at.elapsed() <= Duration::from_secs(longest), "{time_left:?}: {:?}", asked_at.elapsed());
    }
    let mut callers = Callers { lost_take_overs: usize::MAX, takes, ..Callers::new(&store) };
    let ran = run_in(&idempotency, lost, &mut callers, response("one"));
    let refused = tokio::time::timeout(Duration::from_secs(60), ran).await.expect("it asks for ever");
    assert!(matches!(refused, Err(RefusalReason::InFlight)), "{refused:?}");
}

#[tokio::test]
async fn over_a_store_that_opens_no_transactions_the_handler_does_not_run() {
    let (store, idempotency, _) = over(Opens { cannot: true, ..Opens::default() });
    let handler = Handler::ready();
    let Outcomes { result, slot } = run(&idempotency, attempt("a", "x"), &handler, response("one")).await;
    assert!(matches!(result, Err(RefusalReason::StoreUnavailable(_))), "{result:?}");
    assert!(slot.fault().is_some_and(|fault| fault.contains("from_pool")), "{:?}", slot.fault());
    assert_eq!((handler.runs(), store.usage().entries), (0, 0));
}

#[tokio::test]
async fn without_its_store_no_transaction_runs_even_if_the_policy_does_without() {
    let idempotency = Idempotency::new(Intercept::new(MemoryStore::new(), Down));
    let handler = Handler::ready();
    let mut attempt = attempt("a", "x");
    attempt.rules.run_without_store = true;
    let refused = run(&idempotency, attempt, &handler, response("one")).await.result;
    assert!(
        matches!(&refused, Err(RefusalReason::StoreUnavailable(StoreError::Unavailable(cause))) if cause.to_string() == "down"),
        "{refused:?}"
    );
    assert_eq!(handler.runs(), 0);
}

struct Down;

impl Hooks<MemoryStore> for Down {
    async fn begin(
        &self,
        _: &MemoryStore,
        _: &StorageKey,
        _: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        Err(StoreError::unavailable("down"))
    }
}

#[tokio::test]
async fn a_response_that_is_not_whole_commits_nothing() {
    let (store, idempotency, _) = over(Opens::default());
    let slot = TransactionSlot::default();
    slot.keep_writes();
    let live = || async {
        let recording = async { RecordedStream { outcome: response("stream"), delivery: None } };
        Executed { response: 1, recording: Recording::Live(Box::pin(recording)) }
    };
    let result = idempotency.run_in_transaction(attempt("a", "x"), slot.clone(), live).await;
    assert!(matches!(result, Err(RefusalReason::OutcomeUnknown)), "{result:?}");
    assert!(slot.fault().is_some() && !slot.keeps_writes());
    assert_eq!(store.usage().entries, 0);
}

/// A transaction of the caller, whose claim is one of a store in memory.
struct Callers {
    store: MemoryStore,
    claim: Option<MemoryClaim>,
    /// How many take-overs another request forestalls.
    lost_take_overs: usize,
    /// How long a take-over takes.
    takes: Duration,
    /// What the end reports.
    end: Result<(), StoreError>,
    undone: usize,
}

impl Callers {
    fn new(store: &MemoryStore) -> Self {
        Self { store: store.clone(), claim: None, lost_take_overs: 0, takes: Duration::ZERO, end: Ok(()), undone: 0 }
    }
}

impl CallerTransaction for Callers {
    async fn begin(
        &mut self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<()>, StoreError> {
        self.claim = None;
        Ok(match self.store.begin(key, fingerprint, options).await? {
            Begin::Claimed(claim) => {
                self.claim = Some(claim);
                Begin::Claimed(())
            }
            Begin::Abandoned(claim) => {
                self.claim = Some(claim);
                Begin::Abandoned(())
            }
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn take_over(&mut self) -> Result<(), StoreError> {
        tokio::time::sleep(self.takes).await;
        if let Some(left) = self.lost_take_overs.checked_sub(1) {
            self.lost_take_overs = left;
            return Err(StoreError::Lost);
        }
        self.claim.as_mut().unwrap().renew(Duration::ZERO).await
    }

    async fn complete(&mut self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        self.end.clone()?;
        self.claim.take().unwrap().complete(record.clone(), ttl).await
    }

    async fn undo(&mut self) -> Result<(), StoreError> {
        self.undone += 1;
        self.end.clone()?;
        self.claim.take().unwrap().release().await
    }
}

async fn run_in(
    idempotency: &Idempotency,
    attempt: Attempt,
    callers: &mut Callers,
    outcome: Outcome,
) -> Result<RunResult<usize>, RefusalReason> {
    let handler = async |_: &mut Callers| Executed { response: 1, recording: Recording::Done(outcome) };
    idempotency.run_in_transaction_of_caller(attempt, callers, handler).await
}

#[tokio::test]
async fn in_the_callers_transaction_an_end_is_what_the_transaction_says() {
    let lost = || Err(StoreError::Lost);
    let broken = || Err(StoreError::unavailable("the connection is broken"));
    for (outcome, end, expected) in [
        (response("one"), Ok(()), "executed"),
        (response("one"), lost(), "unknown"),
        (response("one"), broken(), "unavailable"),
        (Outcome::Release, Ok(()), "executed"),
        (Outcome::Release, lost(), "unknown"),
        (Outcome::Release, broken(), "executed"),
    ] {
        let store = MemoryStore::new();
        let mut callers = Callers { end, ..Callers::new(&store) };
        let result = run_in(&Idempotency::new(store), attempt("a", "x"), &mut callers, outcome).await;
        let got = match &result {
            Ok(RunResult::Executed(1)) => "executed",
            Err(RefusalReason::OutcomeUnknown) => "unknown",
            Err(RefusalReason::StoreUnavailable(_)) => "unavailable",
            other => panic!("{other:?}"),
        };
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn in_the_callers_transaction_a_claim_is_taken_over_or_refused_and_undone() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let lost = attempt("a", "x");
    drop(store.begin(&lost.key, &lost.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await.unwrap());
    let mut callers = Callers::new(&store);
    let other = run_in(&idempotency, attempt("a", "y"), &mut callers, response("one")).await;
    assert!(matches!(other, Err(RefusalReason::Mismatch)), "{other:?}");
    let mut rerun = lost;
    rerun.rules.abandoned = Abandoned::Rerun;
    callers.lost_take_overs = 2;
    assert_eq!(ran(run_in(&idempotency, rerun, &mut callers, response("one")).await), 1);
    assert_eq!((callers.lost_take_overs, callers.undone), (0, 0));
    assert_eq!(recorded(run_in(&idempotency, lost, &mut callers, response("two")).await), "one");
}

#[tokio::test(start_paused = true)]
async fn in_the_callers_transaction_an_attempt_waits_and_gives_up_in_time() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(store.clone());
    let mut patient = attempt("a", "x");
    patient.rules.wait = Some(Duration::from_secs(5));
    let begun =
        store.begin(&patient.key, &patient.fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await;
    let Ok(Begin::Claimed(claim)) = begun else { panic!("the key is free") };
    let mut callers = Callers::new(&store);
    let asked = Instant::now();
    let given_up = run_in(&idempotency, patient, &mut callers, response("one")).await;
    assert!(matches!(given_up, Err(RefusalReason::InFlight)), "{given_up:?}");
    assert_eq!(asked.elapsed().as_secs(), 5);
    let mut waiting = Box::pin(run_in(&idempotency, patient, &mut callers, response("one")));
    assert!(poll_once(&mut waiting).await.is_none(), "it waits");
    claim.release().await.unwrap();
    assert_eq!(ran(waiting.await), 1);
}

#[tokio::test]
async fn in_the_callers_transaction_an_execution_without_room_leaves_the_key_free() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::builder(store.clone()).max_executions(0).build();
    let mut callers = Callers::new(&store);
    let refused = run_in(&idempotency, attempt("a", "x"), &mut callers, response("one")).await;
    assert!(matches!(refused, Err(RefusalReason::TooManyExecutions)), "{refused:?}");
    assert_eq!((callers.undone, store.usage().entries), (1, 0));
}

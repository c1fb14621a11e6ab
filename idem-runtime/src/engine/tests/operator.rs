//! What operators learn of a key, and what they may change.

use std::time::Duration;

use super::*;
use crate::clock::SystemClock;
use crate::engine::complete::ClaimEnd;
use crate::execution_info::ExecutionInfo;
use crate::store::{KeyState, StoreCapabilities, StoredEntry};

/// An engine over a store in memory, and their clock.
struct Operated {
    idempotency: Idempotency,
    clock: ManualClock,
}

impl Operated {
    fn new() -> Self {
        let clock = ManualClock::new();
        let idempotency = Idempotency::builder(MemoryStore::new()).clock(clock.clone()).build();
        Self { idempotency, clock }
    }

    /// Runs `outcome` for the key `a`, at an endpoint and within a trace.
    async fn run(&self, outcome: Outcome) {
        ran(self.idempotency.run(from_orders(), Handler::ready().run(outcome)).await);
    }

    /// Leaves a claim under the key `a` whose owner is gone.
    async fn abandon(&self) {
        let begun = begin(&self.idempotency).await;
        assert!(matches!(begun, Ok(Begin::Claimed(_))), "a free key");
    }

    async fn inspect(&self) -> Option<KeyReport> {
        self.idempotency.inspect(&Scope::GLOBAL, &a()).await.unwrap()
    }

    async fn settle(&self, outcome: Outcome) -> Result<Settled, SettleError> {
        self.idempotency.settle(&Scope::GLOBAL, &a(), outcome).await
    }
}

/// Asks the store for the key `a`.
async fn begin(idempotency: &Idempotency) -> super::super::begin::Begun {
    let core = &idempotency.handle.core;
    core.begin(&from_orders(), ExecutionInfo::start(&from_orders(), core.clock.now())).await
}

const TTL: Duration = Duration::from_secs(60 * 60);

fn a() -> Key {
    Key::parse(b"a").unwrap()
}

fn from_orders() -> Attempt {
    let trace = TraceParent::parse(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut attempt = attempt("a", "x").at(Endpoint::new("POST", "/orders/{id}")).within(trace);
    attempt.rules.ttl = TTL;
    attempt
}

#[tokio::test]
async fn settling_for_no_time_does_not_free_the_key() {
    let operated = Operated::new();
    operated.abandon().await;
    let settled = operated.idempotency.settle_for(&Scope::GLOBAL, &a(), Outcome::NotReplayable, Duration::ZERO).await;
    assert!(matches!(settled, Err(SettleError::ZeroTtl)), "{settled:?}");
    assert_eq!(operated.inspect().await.unwrap().status(), KeyStatus::OutcomeUnknown);
}

#[tokio::test]
async fn a_record_says_where_it_comes_from_and_how_often_it_was_replayed() {
    let operated = Operated::new();
    let began_at = operated.clock.now();
    assert!(operated.inspect().await.is_none(), "a free key");
    operated.run(response("one")).await;
    operated.clock.advance(Duration::from_secs(60));
    for replays in 0..3 {
        for _ in 0..2 {
            let found = operated.inspect().await.unwrap();
            assert_eq!((found.status(), found.replays()), (KeyStatus::Recorded, Some(replays)), "looking is no replay");
            assert_eq!(found.endpoint(), Some("POST /orders/{id}"));
            assert_eq!((found.started_at(), found.age()), (Some(began_at), Some(Duration::from_secs(60))));
            assert_eq!(found.expires_at(), Some(began_at.after(TTL)));
            assert_eq!(found.content().map(|content| &content[..]), Some(&b"one"[..]));
            assert_eq!(found.fingerprint(), &from_orders().fingerprint);
            assert_eq!(found.execution_info().unwrap().trace(), from_orders().trace);
        }
        let replay = operated.idempotency.run(from_orders(), Handler::ready().run(response("two"))).await;
        assert_eq!(recorded(replay), "one");
        let other = operated.idempotency.run(attempt("a", "y"), Handler::ready().run(response("two"))).await;
        assert!(matches!(other, Err(RefusalReason::Mismatch)), "no replay");
    }
    operated.clock.advance(TTL);
    assert!(operated.inspect().await.is_none(), "what has expired is gone");
}

#[tokio::test]
async fn a_replay_has_the_origin_of_the_execution_and_not_its_own() {
    let operated = Operated::new();
    operated.run(response("one")).await;
    let found = operated.inspect().await.unwrap();
    operated.clock.advance(Duration::from_secs(1));
    match operated.idempotency.run(from_orders().within(None), Handler::ready().run(response("two"))).await {
        Ok(RunResult::Replayed(replay)) => {
            assert_eq!(replay.execution_info().as_ref(), found.execution_info());
            assert_eq!(replay.execution_info().unwrap().trace(), from_orders().trace);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_handler_that_runs_is_in_flight_and_says_since_when() {
    let operated = Operated::new();
    let began_at = operated.clock.now();
    let handler = Handler::new();
    let mut first = Box::pin(operated.idempotency.run(from_orders(), handler.run(response("one"))));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut first => panic!("the handler waits"),
    }
    operated.clock.advance(Duration::from_secs(7));
    let running = operated.inspect().await.unwrap();
    assert_eq!((running.status(), running.started_at()), (KeyStatus::InFlight, Some(began_at)));
    assert_eq!((running.age(), running.expires_at()), (Some(Duration::from_secs(7)), None));
    assert_eq!((running.endpoint(), running.replays()), (Some("POST /orders/{id}"), None));
    assert!(matches!(operated.settle(response("two")).await, Err(SettleError::NotUnknown(KeyStatus::InFlight))));
    assert!(!operated.idempotency.forget(&Scope::GLOBAL, &a()).await.unwrap(), "its handler runs");
    handler.may_end.add_permits(1);
    assert_eq!(ran(first.await), 1);
    let recorded = operated.inspect().await.unwrap();
    assert_eq!(recorded.execution_info(), running.execution_info(), "claim and record are of one execution");
}

#[tokio::test]
async fn an_unknown_outcome_is_settled_as_the_operator_says() {
    for (outcome, state) in [
        (response("found"), Some(KeyStatus::Recorded)),
        (Outcome::NotReplayable, Some(KeyStatus::NotReplayable)),
        (Outcome::Release, None),
    ] {
        let operated = Operated::new();
        operated.abandon().await;
        let unknown = operated.inspect().await.unwrap();
        assert_eq!((unknown.status(), unknown.endpoint()), (KeyStatus::OutcomeUnknown, Some("POST /orders/{id}")));
        operated.clock.advance(Duration::from_secs(60));
        assert_eq!(operated.settle(outcome).await.unwrap(), Settled::Now);
        let settled = operated.inspect().await;
        assert_eq!(settled.as_ref().map(KeyReport::status), state);
        if let Some(settled) = settled {
            assert_eq!(settled.execution_info(), unknown.execution_info(), "of the execution that it is about");
            assert_eq!(settled.expires_at(), Some(operated.clock.now().after(TTL)), "as the endpoint's records live");
        }
        let retry = operated.idempotency.run(from_orders(), Handler::ready().run(response("again"))).await;
        match state {
            Some(KeyStatus::Recorded) => assert_eq!(recorded(retry), "found"),
            Some(_) => assert!(matches!(retry, Err(RefusalReason::NotReplayable)), "{retry:?}"),
            None => assert_eq!(ran(retry), 1),
        }
    }
}

#[tokio::test]
async fn to_settle_again_changes_nothing_and_returns_the_state() {
    let operated = Operated::new();
    assert!(matches!(operated.settle(response("one")).await, Err(SettleError::Free)));
    assert!(operated.inspect().await.is_none(), "a key that was free is free");
    operated.abandon().await;
    assert_eq!(operated.settle(response("one")).await.unwrap(), Settled::Now);
    operated.clock.advance(Duration::from_secs(1));
    let first = operated.inspect().await.unwrap();
    assert_eq!(operated.settle(response("one")).await.unwrap(), Settled::Already);
    for other in [response("two"), Outcome::NotReplayable, Outcome::Release] {
        let refused = operated.settle(other).await;
        assert!(matches!(refused, Err(SettleError::NotUnknown(KeyStatus::Recorded))), "{refused:?}");
    }
    let last = operated.inspect().await.unwrap();
    assert_eq!((last.content(), last.expires_at()), (first.content(), first.expires_at()));
}

#[tokio::test]
async fn a_settled_record_lives_as_long_as_the_operator_says() {
    let operated = Operated::new();
    operated.abandon().await;
    let day = Duration::from_secs(24 * 60 * 60);
    operated.idempotency.settle_for(&Scope::GLOBAL, &a(), response("one"), day).await.unwrap();
    operated.clock.advance(day - Duration::from_nanos(1));
    assert!(operated.inspect().await.is_some());
    operated.clock.advance(Duration::from_nanos(1));
    assert!(operated.inspect().await.is_none());
}

#[tokio::test]
async fn of_two_operators_one_settles() {
    let operated = Operated::new();
    operated.abandon().await;
    // One has taken the claim over, and not ended it yet.
    let begun = begin(&operated.idempotency).await;
    let Ok(Begin::Abandoned(mut one)) = begun else { panic!("the claim has no owner") };
    one.renew(TTL).await.unwrap();
    let two = operated.settle(response("two")).await;
    assert!(matches!(two, Err(SettleError::NotUnknown(KeyStatus::InFlight))), "{two:?}");
    let ClaimEnd::Complete(record, ttl) =
        ClaimEnd::new(response("one"), from_orders().fingerprint, None, TTL, &operated.clock)
    else {
        panic!("a response is a record")
    };
    one.complete(record, ttl).await.unwrap();
    let two = operated.settle(response("two")).await;
    assert!(matches!(two, Err(SettleError::NotUnknown(KeyStatus::Recorded))), "{two:?}");
    assert_eq!(operated.inspect().await.unwrap().content().unwrap(), "one");
}

/// The store shows every key as it was a moment ago, before another came: abandoned.
struct Behind;

impl Hooks<MemoryStore> for Behind {
    async fn inspect(&self, _: &MemoryStore, _: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        Ok(Some(StoredEntry::new(KeyState::Abandoned(from_orders().fingerprint))))
    }
}

/// After the first look another operator releases the key, and another execution leaves its outcome unknown.
struct Overtaken(Mutex<Option<ExecutionInfo>>);

impl Hooks<MemoryStore> for Overtaken {
    async fn inspect(&self, store: &MemoryStore, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        let seen = store.inspect(key).await;
        let later = self.0.lock().unwrap().take();
        if let Some(info) = later {
            assert!(store.forget(key).await?);
            let options = BeginOptions::new(TTL, TTL).with_info(info);
            drop(store.begin(key, &from_orders().fingerprint, &options).await?);
        }
        seen
    }
}

#[tokio::test]
async fn a_later_execution_is_not_settled_for_an_earlier_one() {
    let store = MemoryStore::new();
    let later = ExecutionInfo::start(&from_orders(), SystemClock::new().now());
    let idempotency = Idempotency::new(Intercept::new(store.clone(), Overtaken(Mutex::new(Some(later.clone())))));
    // In the store itself, so that the look that makes way for another is that of the operator.
    let earlier = ExecutionInfo::start(&from_orders(), SystemClock::new().now());
    let key = from_orders().key;
    let options = BeginOptions::new(TTL, TTL).with_info(earlier);
    drop(store.begin(&key, &from_orders().fingerprint, &options).await.unwrap());
    let settled = idempotency.settle(&Scope::GLOBAL, &a(), Outcome::Release).await;
    assert!(matches!(settled, Err(SettleError::NotUnknown(KeyStatus::OutcomeUnknown))), "{settled:?}");
    let left = idempotency.inspect(&Scope::GLOBAL, &a()).await.unwrap().unwrap();
    assert_eq!(left.status(), KeyStatus::OutcomeUnknown);
    assert_eq!(left.execution_info(), Some(&later));
}

#[tokio::test]
async fn what_has_changed_since_it_was_looked_at_is_left_as_it_is() {
    let store = MemoryStore::new();
    let idempotency = Idempotency::new(Intercept::new(store.clone(), Behind));
    let settled = idempotency.settle(&Scope::GLOBAL, &a(), response("settled")).await;
    assert!(matches!(settled, Err(SettleError::Free)), "{settled:?}");
    assert_eq!(store.usage().entries, 0, "a free key takes no room");
    assert_eq!(ran(idempotency.run(from_orders(), Handler::ready().run(response("one"))).await), 1);
    let settled = idempotency.settle(&Scope::GLOBAL, &a(), response("settled")).await;
    assert!(matches!(settled, Err(SettleError::Store(StoreError::Unavailable(_)))), "{settled:?}");
    assert_eq!(recorded(idempotency.run(from_orders(), Handler::ready().run(response("two"))).await), "one");
}

#[tokio::test]
async fn a_forgotten_key_runs_again() {
    let operated = Operated::new();
    let forget = async || operated.idempotency.forget(&Scope::GLOBAL, &a()).await;
    assert!(!forget().await.unwrap(), "nothing is there");
    operated.run(response("one")).await;
    assert!(forget().await.unwrap());
    assert!(!forget().await.unwrap(), "to repeat it is safe");
    operated.abandon().await;
    assert!(forget().await.unwrap(), "a claim without an owner goes, too");
    operated.run(response("two")).await;
    assert_eq!(operated.inspect().await.unwrap().content().unwrap(), "two");
}

#[tokio::test]
async fn a_second_run_takes_the_claim_over_with_another_origin() {
    let operated = Operated::new();
    operated.abandon().await;
    let first = operated.inspect().await.unwrap();
    operated.clock.advance(Duration::from_secs(60));
    // To be refused changes nothing.
    let refused = operated.idempotency.run(from_orders(), Handler::ready().run(response("two"))).await;
    assert!(matches!(refused, Err(RefusalReason::OutcomeUnknown)), "{refused:?}");
    assert_eq!(operated.inspect().await.unwrap().execution_info(), first.execution_info());
    let mut again = from_orders();
    again.rules.abandoned = Abandoned::Rerun;
    let handler = Handler::new();
    let mut rerun = Box::pin(operated.idempotency.run(again, handler.run(response("two"))));
    tokio::select! {
        () = handler.started.notified() => {}
        _ = &mut rerun => panic!("the handler waits"),
    }
    let running = operated.inspect().await.unwrap();
    assert_eq!((running.status(), running.age()), (KeyStatus::InFlight, Some(Duration::ZERO)), "its own run");
    handler.may_end.add_permits(1);
    assert_eq!(ran(rerun.await), 1);
    assert_eq!(operated.inspect().await.unwrap().execution_info(), running.execution_info());
}

#[tokio::test]
async fn a_store_that_cannot_be_inspected_says_so_and_is_not_changed() {
    let idempotency = Idempotency::new(far::Far::new());
    let inspected = idempotency.inspect(&Scope::GLOBAL, &a()).await;
    assert!(matches!(inspected, Err(StoreError::CannotInspect)), "{inspected:?}");
    let settled = idempotency.settle(&Scope::GLOBAL, &a(), Outcome::Release).await;
    assert!(matches!(settled, Err(SettleError::Store(StoreError::CannotInspect))), "{settled:?}");
    assert_eq!(ran(idempotency.run(from_orders(), Handler::ready().run(response("one"))).await), 1);
}

#[tokio::test]
async fn keys_whose_outcome_is_unknown_are_listed_and_can_be_settled() {
    let operated = Operated::new();
    let keys = [1_u8, 2, 3];
    for key in keys {
        let attempt = Attempt { key: StorageKey::from_bytes([key; 32]), ..from_orders() };
        let panics = |_| async { panic!("on purpose") };
        let crashed: Result<RunResult<usize>, _> = operated.idempotency.run(attempt, panics).await;
        assert!(matches!(crashed, Err(RefusalReason::OutcomeUnknown)), "{crashed:?}");
    }
    operated.run(response("one")).await;
    let list = async || {
        let (mut listed, mut next) = (Vec::new(), None);
        loop {
            let page = operated.idempotency.inspect_unknown(next).await.unwrap();
            for (key, report) in page.keys {
                assert_eq!(
                    (report.status(), report.endpoint()),
                    (KeyStatus::OutcomeUnknown, Some("POST /orders/{id}"))
                );
                listed.push(key.as_bytes()[0]);
            }
            next = page.next;
            if next.is_none() {
                listed.sort_unstable();
                return listed;
            }
        }
    };
    assert_eq!(list().await, keys);
    let found = StorageKey::from_bytes([2; 32]);
    assert_eq!(operated.idempotency.settle_found(&found, Outcome::NotReplayable).await.unwrap(), Settled::Now);
    assert_eq!(list().await, [1, 3]);
}

#[tokio::test]
async fn an_operator_takes_the_claim_of_a_hung_execution_away_and_settles_it() {
    for outcome in [response("settled"), Outcome::Release] {
        let operated = Operated::new();
        let revoke = async || operated.idempotency.revoke(&Scope::GLOBAL, &a()).await.unwrap();
        assert!(!revoke().await, "a free key has no claim");
        let released = matches!(outcome, Outcome::Release);
        let hung = Handler::new();
        let first = tokio::spawn(operated.idempotency.run(from_orders(), hung.run(response("late"))));
        hung.started.notified().await;
        assert!(matches!(operated.settle(outcome_like(&outcome)).await, Err(SettleError::NotUnknown(_))));
        assert!(revoke().await);
        assert!(!revoke().await, "to repeat it is safe");
        assert_eq!(operated.inspect().await.unwrap().status(), KeyStatus::OutcomeUnknown);
        assert_eq!(operated.settle(outcome).await.unwrap(), Settled::Now);
        let handler = Handler::ready();
        if released {
            assert_eq!(ran(operated.idempotency.run(from_orders(), handler.run(response("settled"))).await), 1);
        }
        hung.may_end.add_permits(1);
        assert_eq!(ran(first.await.unwrap()), 1, "its caller gets its response");
        let retry = operated.idempotency.run(from_orders(), handler.run(response("two"))).await;
        assert_eq!(recorded(retry), "settled");
    }
}

fn outcome_like(outcome: &Outcome) -> Outcome {
    if let Outcome::Release = outcome { Outcome::Release } else { response("settled") }
}

#[tokio::test]
async fn a_report_has_what_the_store_says_of_a_claim_and_of_a_record() {
    let operated = Operated::new();
    let core = &operated.idempotency.handle.core;
    let mut entry = StoredEntry::new(KeyState::InFlight(from_orders().fingerprint));
    assert_eq!(core.report(entry.clone()).unwrap().unwrap().lease_until(), None);
    let (lease, expiry) = (operated.clock.now().after(TTL), operated.clock.now().after(2 * TTL));
    (entry.lease_until, entry.expires_at) = (Some(lease), Some(expiry));
    let report = core.report(entry).unwrap().unwrap();
    assert_eq!((report.lease_until(), report.expires_at()), (Some(lease), Some(expiry)));
    assert_eq!((report.endpoint(), report.replays(), report.content()), (None, None, None));
}

#[tokio::test]
async fn a_store_that_judges_expiry_has_the_last_word() {
    for (judges_expiry, is_found) in [(true, true), (false, false)] {
        let clock = ManualClock::new();
        let store = Intercept::new(MemoryStore::new(), Judges(judges_expiry));
        let idempotency = Idempotency::builder(store).clock(clock.clone()).build();
        let record = Record::with_content(from_orders().fingerprint, RecordBuilder::new(), clock.now(), None);
        let report = idempotency.handle.core.report(StoredEntry::new(KeyState::Completed(record))).unwrap();
        assert_eq!(report.is_some(), is_found);
    }
}

struct Judges(bool);

impl Hooks<MemoryStore> for Judges {
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { judges_expiry: self.0, ..store.attach(clock) }
    }
}

/// The store is down, but can be inspected.
#[derive(Default)]
struct DownExceptInspection(AtomicUsize);

impl Hooks<MemoryStore> for DownExceptInspection {
    async fn begin(
        &self,
        _: &MemoryStore,
        _: &StorageKey,
        _: &Fingerprint,
        _: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(StoreError::unavailable("on purpose"))
    }
}

#[tokio::test]
async fn what_the_store_says_when_it_fails_reaches_the_operator() {
    let store = MemoryStore::new();
    let key = from_orders().key;
    drop(store.begin(&key, &from_orders().fingerprint, &BeginOptions::new(TTL, TTL)).await.unwrap());
    let store = Intercept::new(store, DownExceptInspection::default());
    let settled = Idempotency::new(store.clone()).settle(&Scope::GLOBAL, &a(), Outcome::Release).await;
    let Err(error @ SettleError::Store(StoreError::Unavailable(_))) = settled else { panic!("{settled:?}") };
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<StoreError>(), "{source}");
    assert_eq!(store.hooks.0.load(Ordering::SeqCst), 1, "it is not asked again");
    assert!(std::error::Error::source(&SettleError::Free).is_none());
}

#[test]
fn an_error_of_an_operator_says_what_the_key_is_and_what_to_do() {
    for (error, text) in [
        (SettleError::Free, "the key is free"),
        (SettleError::NotUnknown(KeyStatus::InFlight), "the key is in flight, and only an unknown outcome"),
        (SettleError::NotUnknown(KeyStatus::Recorded), "the key is recorded, and only an unknown outcome"),
        (SettleError::NotUnknown(KeyStatus::NotReplayable), "the key is not replayable, and only"),
        (SettleError::NotUnknown(KeyStatus::OutcomeUnknown), "another execution claimed the key meanwhile"),
        (SettleError::ZeroTtl, "settle it as released"),
        (SettleError::Store(StoreError::Full), "inspect it"),
        (SettleError::Store(StoreError::CannotInspect), "cannot be inspected, so nothing was settled"),
    ] {
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// A store with leases, which loses its reply to the first completion.
#[derive(Default)]
struct LosesFirstReply {
    completions: AtomicUsize,
    renewals: AtomicUsize,
}

impl Hooks<MemoryStore> for LosesFirstReply {
    fn attach(&self, store: &MemoryStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { claims_live_with_owner: false, ..store.attach(clock) }
    }

    async fn renew(&self, claim: &mut MemoryClaim, lease: Duration) -> Result<(), StoreError> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        claim.renew(lease).await
    }

    async fn complete(&self, claim: MemoryClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        claim.complete(record, ttl).await?;
        match self.completions.fetch_add(1, Ordering::SeqCst) {
            0 => Err(StoreError::unavailable("the reply was lost")),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_reply_was_lost_is_found_in_the_store() {
    let store = MemoryStore::new();
    let key = from_orders().key;
    drop(store.begin(&key, &from_orders().fingerprint, &BeginOptions::new(TTL, TTL)).await.unwrap());
    let idempotency = Idempotency::new(Intercept::new(store, LosesFirstReply::default()));
    let settled = idempotency.settle(&Scope::GLOBAL, &a(), response("settled")).await;
    assert!(matches!(settled, Ok(Settled::Now)), "{settled:?}");
}

#[tokio::test]
async fn an_operator_who_settles_takes_the_claim_over_and_ends_it() {
    for outcome in [response("one"), Outcome::NotReplayable, Outcome::Release] {
        let operated = Operated::new();
        operated.abandon().await;
        let steps = Arc::<AtomicUsize>::default();
        let counts = far::Events(tracing::Level::DEBUG, Arc::clone(&steps));
        let _counts = crate::test_support::subscriber::set_default(counts);
        assert_eq!(operated.settle(outcome).await.unwrap(), Settled::Now);
        assert_eq!(steps.load(Ordering::SeqCst), 2, "taken over, and then completed or released");
    }
}

#[tokio::test]
async fn what_an_operator_did_is_logged_and_what_they_tried_is_not() {
    let operated = Operated::new();
    let done = Arc::<AtomicUsize>::default();
    let counts = far::Events(tracing::Level::INFO, Arc::clone(&done));
    let _counts = crate::test_support::subscriber::set_default(counts);
    let forget = async || operated.idempotency.forget(&Scope::GLOBAL, &a()).await.unwrap();
    let revoke = async || operated.idempotency.revoke(&Scope::GLOBAL, &a()).await.unwrap();
    assert!(!forget().await && !revoke().await);
    assert_eq!(done.load(Ordering::SeqCst), 0);
    let held = begin(&operated.idempotency).await;
    assert!(!forget().await && revoke().await);
    assert_eq!(done.load(Ordering::SeqCst), 1);
    drop(held);
    assert!(!revoke().await && forget().await);
    assert_eq!(done.load(Ordering::SeqCst), 2);
}

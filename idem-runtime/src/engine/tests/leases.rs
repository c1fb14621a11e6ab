//! Leases: renewed while the handler runs, whatever it does to its thread, and completed for as long as the claim can live.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Condvar, mpsc};

use super::far::Events;
use super::*;
use crate::clock::Timestamp;
use crate::engine::execute::ClaimedExecution;
use crate::execution_info::ExecutionInfo;
use crate::store::{KeyState, StoredEntry};

/// A store outside the process: its leases expire by real time.
#[derive(Clone, Default)]
struct Leased(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rows: Mutex<HashMap<StorageKey, Row>>,
    next_owner: AtomicUsize,
    renewals: Mutex<Vec<Instant>>,
    renewed: Condvar,
    /// How long a reply to `renew` takes.
    renewal_time: Duration,
    /// What `renew` reports instead of renewing.
    renewal_errors: Mutex<Vec<StoreError>>,
    /// How long a reply to `begin` takes.
    begin_time: Duration,
    /// What `complete` reports although it took effect.
    completed: Mutex<Vec<StoreError>>,
    clones: bool,
}

struct Row {
    owner: usize,
    fingerprint: Fingerprint,
    info: Option<ExecutionInfo>,
    lease_until: std::time::Instant,
    record: Option<Record>,
}

struct LeasedClaim {
    store: Leased,
    key: StorageKey,
    owner: usize,
    previous: Option<usize>,
}

impl Leased {
    fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Waits until the store has seen this many renewals. From a thread, since no timer may run.
    fn wait_for_renewals(&self, wanted: usize) -> bool {
        let renewals = self.0.renewals.lock().unwrap();
        let waited = self.0.renewed.wait_timeout_while(renewals, Duration::from_secs(20), |seen| seen.len() < wanted);
        waited.unwrap().0.len() >= wanted
    }

    fn sent(&self) -> Vec<Instant> {
        self.0.renewals.lock().unwrap().clone()
    }
}

impl Store for Leased {
    type Claim = LeasedClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<LeasedClaim>, StoreError> {
        let owner = self.0.next_owner.fetch_add(1, SeqCst) + 1;
        let claim = |previous| LeasedClaim { store: self.clone(), key: *key, owner, previous };
        let begun = {
            let mut rows = self.0.rows.lock().unwrap();
            match rows.get(key) {
                Some(Row { record: Some(record), .. }) => Begin::Completed(record.clone()),
                Some(row) if row.lease_until <= std::time::Instant::now() => Begin::Abandoned(claim(Some(row.owner))),
                Some(row) => Begin::InFlight(row.fingerprint),
                None => {
                    let lease_until = std::time::Instant::now() + options.lease;
                    let (fingerprint, info) = (*fingerprint, options.info.clone());
                    rows.insert(*key, Row { owner, fingerprint, info, lease_until, record: None });
                    Begin::Claimed(claim(None))
                }
            }
        };
        tokio::time::sleep(self.0.begin_time).await;
        Ok(begun)
    }

    async fn ended(&self, _: &StorageKey) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.0.rows.lock().unwrap().remove(key).is_some())
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        Ok(self.0.rows.lock().unwrap().get(key).map(|row| {
            let mut entry = StoredEntry::new(match &row.record {
                Some(record) => KeyState::Completed(record.clone()),
                None => KeyState::InFlight(row.fingerprint),
            });
            entry.info.clone_from(&row.info);
            entry
        }))
    }

    fn attach(&self, _: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: false }
    }
}

impl Claim for LeasedClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let inner = &self.store.0;
        inner.renewals.lock().unwrap().push(Instant::now());
        inner.renewed.notify_all();
        if let Some(error) = inner.renewal_errors.lock().unwrap().pop() {
            return Err(error);
        }
        let renewed = match inner.rows.lock().unwrap().get_mut(&self.key) {
            Some(row) if row.record.is_none() && (row.owner == self.owner || Some(row.owner) == self.previous) => {
                row.owner = self.owner;
                row.lease_until = std::time::Instant::now() + lease;
                Ok(())
            }
            _ => Err(StoreError::Lost),
        };
        tokio::time::sleep(inner.renewal_time).await;
        renewed
    }

    async fn complete(self, record: Record, _: Duration) -> Result<(), StoreError> {
        match self.store.0.rows.lock().unwrap().get_mut(&self.key) {
            Some(row) if row.owner == self.owner => {
                row.record.get_or_insert(record);
            }
            _ => return Err(StoreError::Lost),
        }
        self.store.0.completed.lock().unwrap().pop().map_or(Ok(()), Err)
    }

    async fn release(self) -> Result<(), StoreError> {
        self.store.0.rows.lock().unwrap().remove(&self.key);
        Ok(())
    }

    fn try_clone(&self) -> Option<Self> {
        self.store.0.clones.then(|| Self { store: self.store.clone(), ..*self })
    }
}

fn rerun() -> Attempt {
    let mut attempt = attempt("a", "x");
    attempt.rules.abandoned = Abandoned::Rerun;
    attempt
}

/// How a handler takes its thread.
#[derive(Clone, Copy, Debug)]
enum Blocks {
    InPlace,
    AtOnce,
    /// After the async runtime has woken it: then no other thread waits for timers.
    AfterWaking,
}

#[test]
fn a_handler_that_blocks_its_thread_keeps_its_lease() {
    for blocks in [Blocks::InPlace, Blocks::AtOnce, Blocks::AfterWaking] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = Leased::default();
        let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_millis(900)).build();
        let (end, may_end) = mpsc::channel::<()>();
        let handler = move |lease: Lease| async move {
            match blocks {
                Blocks::InPlace => tokio::task::block_in_place(|| may_end.recv()).unwrap(),
                Blocks::AtOnce => may_end.recv().unwrap(),
                Blocks::AfterWaking => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    may_end.recv().unwrap();
                }
            }
            Executed { response: usize::from(lease.is_lost()), recording: Recording::Done(response("one")) }
        };
        let first = runtime.spawn({
            let idempotency = idempotency.clone();
            async move { idempotency.run(rerun(), handler).await }
        });
        assert!(store.wait_for_renewals(4), "{blocks:?}: the lease was renewed {} times", store.sent().len());
        let second = Handler::ready();
        let retry = runtime.block_on(idempotency.run(rerun(), second.run(response("two"))));
        assert!(matches!(retry, Err(RefusalReason::InFlight)), "{blocks:?}: {retry:?}");
        end.send(()).unwrap();
        assert_eq!(ran(runtime.block_on(first).unwrap()), 0, "{blocks:?}: the lease was not lost");
        assert_eq!(recorded(runtime.block_on(idempotency.run(rerun(), second.run(response("two"))))), "one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_by_the_time_since_the_last_renewal_was_sent() {
    let warnings = Arc::<AtomicUsize>::default();
    let _counts = crate::test_support::subscriber::set_default(Events(tracing::Level::WARN, Arc::clone(&warnings)));
    let times = [Duration::from_secs(4), Duration::from_secs(3)];
    let [renewal_time, begin_time] = times;
    let store = Leased::new(Inner { renewal_time, begin_time, ..Inner::default() });
    let idempotency = Idempotency::builder(store.clone()).namespace("shop").lease(Duration::from_secs(30)).build();
    let asked = Instant::now();
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(42)).await;
        Executed { response: 1, recording: Recording::Done(response("slow")) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
    let sent: Vec<_> = store.sent().iter().map(|sent| (*sent - asked).as_secs()).collect();
    assert_eq!(sent, [10, 20, 30, 40]);
    assert_eq!(warnings.load(SeqCst), 0, "no reply took a third of the lease");
}

/// Others may have found the claim abandoned, and taken it over.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_lease_has_expired_when_it_is_granted_is_released() {
    let store = Leased::new(Inner { begin_time: Duration::from_secs(3), ..Inner::default() });
    let engine = |lease| Idempotency::builder(store.clone()).lease(Duration::from_secs(lease)).build();
    let handler = Handler::ready();
    let late = engine(3).run(attempt("a", "x"), handler.run(response("one"))).await;
    assert!(matches!(late, Err(RefusalReason::StoreUnavailable(_))), "{late:?}");
    assert!(store.0.rows.lock().unwrap().is_empty(), "the key is free");
    assert_eq!(ran(engine(4).run(attempt("a", "x"), handler.run(response("two"))).await), 1, "no other handler ran");
}

/// The task of the request starts late, on a thread that was blocked.
#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_the_moment_in_which_the_store_was_asked() {
    let store = Leased::new(Inner { begin_time: Duration::from_millis(1), ..Inner::default() });
    let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(3)).build();
    let mut late = Box::pin(idempotency.run(attempt("a", "x"), Handler::ready().run(response("one"))));
    assert!(poll_once(&mut late).await.is_none());
    tokio::time::advance(Duration::from_secs(3)).await;
    let late = late.await;
    assert!(matches!(late, Err(RefusalReason::StoreUnavailable(_))), "{late:?}");
    assert!(store.0.rows.lock().unwrap().is_empty(), "the key is free");
}

/// The handler of the first owner may have run, so the claim stays abandoned.
#[tokio::test(start_paused = true)]
async fn a_take_over_whose_lease_has_expired_when_it_is_confirmed_runs_no_handler() {
    let store = Leased::new(Inner { renewal_time: Duration::from_secs(3), ..Inner::default() });
    let row = Row {
        owner: 0,
        fingerprint: rerun().fingerprint,
        info: None,
        lease_until: std::time::Instant::now(),
        record: None,
    };
    store.0.rows.lock().unwrap().insert(rerun().key, row);
    let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(3)).build();
    let handler = Handler::ready();
    let late = idempotency.run(rerun(), handler.run(response("one"))).await;
    assert!(matches!(late, Err(RefusalReason::StoreUnavailable(_))), "{late:?}");
    assert_eq!(store.0.rows.lock().unwrap().len(), 1, "the claim is there");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_repeated_long_before_the_lease_expires() {
    let renewal_errors = Mutex::new(vec![StoreError::unavailable("the network is down")]);
    let store = Leased::new(Inner { renewal_errors, ..Inner::default() });
    let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(30)).build();
    let asked = Instant::now();
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(18)).await;
        Executed { response: 1, recording: Recording::Done(response("slow")) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
    let sent: Vec<_> = store.sent().iter().map(|sent| (*sent - asked).as_secs()).collect();
    assert!(matches!(sent[..], [10, 10..=15]), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_may_take_longer_than_a_third_of_the_lease_and_is_warned_of_once() {
    let warnings = Arc::<AtomicUsize>::default();
    let _counts = crate::test_support::subscriber::set_default(Events(tracing::Level::WARN, Arc::clone(&warnings)));
    let store = Leased::new(Inner { renewal_time: Duration::from_secs(1), ..Inner::default() });
    let builder = Idempotency::builder(store.clone()).namespace("shop");
    let idempotency = builder.lease(Duration::from_millis(2400)).build();
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Executed { response: 1, recording: Recording::Done(response("slow")) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
    let sent = store.sent();
    // None is cut off, and the next one follows at once.
    assert!(sent.windows(2).all(|pair| (pair[1] - pair[0]).as_millis().abs_diff(1000) < 10), "{sent:?}");
    assert_eq!(warnings.load(SeqCst), 1);
}

/// The store replies at once. It is the handler that takes longer than a third of the lease, and then its stream.
#[tokio::test(start_paused = true)]
async fn a_handler_that_streams_after_a_while_is_no_slow_reply() {
    let warnings = Arc::<AtomicUsize>::default();
    let _counts = crate::test_support::subscriber::set_default(Events(tracing::Level::WARN, Arc::clone(&warnings)));
    let store = Leased::default();
    let idempotency = Idempotency::builder(store.clone()).namespace("shop").lease(Duration::from_secs(30)).build();
    let slow = |_| async {
        tokio::time::sleep(Duration::from_secs(29)).await;
        let recorded = async {
            tokio::time::sleep(Duration::from_secs(29)).await;
            RecordedStream { outcome: response("slow"), delivery: None }
        };
        Executed { response: 1, recording: Recording::Live(Box::pin(recorded)) }
    };
    assert_eq!(ran(idempotency.run(attempt("a", "x"), slow).await), 1);
    idempotency.drain().await;
    assert_eq!(recorded(idempotency.run(attempt("a", "x"), Handler::ready().run(response("two"))).await), "slow");
    assert_eq!(warnings.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_was_recorded_after_all_is_not_unknown() {
    // The reply to the first try was lost, and the second one finds a record that is not a claim.
    let errors = [StoreError::Lost, StoreError::unavailable("the reply was lost")];
    // A store that cannot be asked again.
    let error = [StoreError::unavailable("the reply was lost")];
    for (clones, errors) in [(true, errors.to_vec()), (false, error.to_vec())] {
        let store = Leased::new(Inner { completed: Mutex::new(errors), clones, ..Inner::default() });
        let idempotency = Idempotency::new(store.clone());
        let core = Arc::clone(&idempotency.handle.core);
        let attempt = rerun();
        let info = ExecutionInfo::start(&attempt, core.clock.now());
        let Ok(Begin::Claimed(claim)) = core.begin(&attempt, info.clone()).await else { panic!("a free key") };
        let permit = core.permit().unwrap();
        let execution = ClaimedExecution::new(&core, &attempt, &info, claim, permit, Instant::now());
        let ended = execution.end(response("one")).await;
        assert!(matches!(ended, Some(Ok(()))), "{clones}: {ended:?}");
        assert_eq!(recorded(idempotency.run(attempt, Handler::ready().run(response("two"))).await), "one");
    }
}

#[tokio::test]
async fn what_an_operator_settled_meanwhile_is_not_what_the_execution_recorded() {
    let store = Leased::new(Inner { clones: true, ..Inner::default() });
    let idempotency = Idempotency::new(store.clone());
    let core = Arc::clone(&idempotency.handle.core);
    let attempt = rerun();
    let info = ExecutionInfo::start(&attempt, core.clock.now());
    let Ok(Begin::Claimed(claim)) = core.begin(&attempt, info.clone()).await else { panic!("a free key") };
    let execution = ClaimedExecution::new(&core, &attempt, &info, claim, core.permit().unwrap(), Instant::now());
    // The lease was lost, and an operator said what became of the execution, whose id the record has.
    let mut settled = RecordBuilder::new();
    settled.put(b"settled");
    let settled = Record::with_content(attempt.fingerprint, settled, Timestamp::NEVER, Some(&info));
    store.0.rows.lock().unwrap().values_mut().for_each(|row| (row.owner, row.record) = (0, Some(settled.clone())));
    let ended = execution.end(response("one")).await;
    assert!(matches!(ended, Some(Err(StoreError::Lost))), "{ended:?}");
}

#[tokio::test]
async fn a_take_over_is_a_step_of_the_claim_in_shadow_mode_too() {
    for is_shadow in [true, false] {
        let steps = Arc::<AtomicUsize>::default();
        let _counts = crate::test_support::subscriber::set_default(Events(tracing::Level::DEBUG, Arc::clone(&steps)));
        let store = MemoryStore::new();
        let idempotency = Idempotency::new(store.clone());
        drop(store.begin(&rerun().key, &rerun().fingerprint, &BeginOptions::new(Duration::ZERO, Duration::MAX)).await);
        if is_shadow {
            idempotency.shadow(rerun(), |_| ()).await.ended(response("one"));
        } else {
            assert_eq!(ran(idempotency.run(rerun(), Handler::ready().run(response("one"))).await), 1);
        }
        idempotency.drain().await;
        assert_eq!(steps.load(SeqCst), 2, "taken over and completed, in shadow mode: {is_shadow}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_the_moment_in_which_the_store_was_asked_in_shadow_mode_too() {
    let store = Leased::new(Inner { begin_time: Duration::from_secs(4), ..Inner::default() });
    let idempotency = Idempotency::builder(store.clone()).lease(Duration::from_secs(30)).build();
    let asked = Instant::now();
    let shadow = idempotency.shadow(attempt("a", "x"), |_| ()).await;
    tokio::time::sleep(Duration::from_secs(22)).await;
    shadow.ended(response("one"));
    idempotency.drain().await;
    let sent: Vec<_> = store.sent().iter().map(|sent| (*sent - asked).as_secs()).collect();
    assert_eq!(sent, [10, 20]);
}

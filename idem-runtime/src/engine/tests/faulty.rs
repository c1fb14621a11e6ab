//! The engine over a store that fails.

use super::*;

mod completions;
mod late;
mod lost;

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

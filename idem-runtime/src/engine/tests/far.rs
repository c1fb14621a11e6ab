//! The engine, and the cache in front of it, over a store that is far away: its replies come late, or not at all.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use super::{Attempt, Idempotency, RefusalReason, Rules, RunResult};
use crate::{
    Abandoned, Begin, BeginOptions, Claim, Clock, Executed, Fingerprint, ManualClock, Outcome, Record, RecordBuilder,
    Recording, StorageKey, Store, StoreCapabilities, StoreError, Timestamp,
};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn attempt(key: u8, fingerprint: u8) -> Attempt {
    Attempt::new(StorageKey::from_bytes([key; 32]), Fingerprint::from_bytes([fingerprint; 32]), Rules::DEFAULT)
}

async fn response(text: &'static str) -> Executed<&'static str> {
    let mut builder = RecordBuilder::new();
    builder.put(text.as_bytes());
    Executed { response: text, recording: Recording::Done(Outcome::Record(builder)) }
}

#[derive(Clone)]
enum Row {
    Claim { owner: u64, fp: Fingerprint, gone: bool },
    Kept { owner: u64, record: Record, expires: Timestamp },
}
/// A store outside the process that keeps no more than it must: it cannot be inspected.
#[derive(Clone)]
pub(super) struct Far {
    rows: Arc<Mutex<HashMap<StorageKey, Row>>>,
    clock: ManualClock,
    next: Arc<AtomicU64>,
    faults: Arc<Faults>,
}
#[derive(Default)]
struct Faults {
    renew_delay: Mutex<Duration>,
    lose_completes: AtomicU64,
    complete_ack_delay: Mutex<Duration>,
    panic_sync_complete: AtomicU64,
    panic_ended: AtomicU64,
}
impl Far {
    pub(super) fn new() -> Self {
        Self {
            rows: Default::default(),
            clock: ManualClock::new(),
            next: Default::default(),
            faults: Default::default(),
        }
    }
    fn abandon(&self, key: StorageKey, fp: Fingerprint) {
        self.rows.lock().unwrap().insert(key, Row::Claim { owner: 0, fp, gone: true });
    }
}
pub(super) struct FarClaim {
    far: Far,
    key: StorageKey,
    owner: u64,
    former: Option<u64>,
}
impl Store for Far {
    type Claim = FarClaim;
    async fn begin(&self, key: &StorageKey, fp: &Fingerprint, _: &BeginOptions) -> Result<Begin<FarClaim>, StoreError> {
        tokio::task::yield_now().await; // remote
        let mut rows = self.rows.lock().unwrap();
        let owner = self.next.fetch_add(1, SeqCst) + 1;
        let claim = |former| FarClaim { far: self.clone(), key: *key, owner, former };
        match rows.get(key) {
            Some(Row::Kept { record, expires, .. }) if self.clock.now() < *expires => {
                return Ok(Begin::Completed(record.clone()));
            }
            Some(Row::Claim { owner, fp: f, gone: true }) if f == fp => {
                return Ok(Begin::Abandoned(claim(Some(*owner))));
            }
            Some(Row::Claim { fp, .. }) => return Ok(Begin::InFlight(*fp)),
            _ => {}
        }
        rows.insert(*key, Row::Claim { owner, fp: *fp, gone: false });
        Ok(Begin::Claimed(claim(None)))
    }
    fn ended(&self, _: &StorageKey) -> impl Future<Output = ()> + Send {
        let p = self.faults.panic_ended.load(SeqCst);
        async move {
            if p > 0 {
                panic!("on purpose")
            }
            tokio::time::sleep(Duration::from_millis(50)).await
        }
    }
    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.rows.lock().unwrap().remove(key).is_some())
    }
    fn attach(&self, _: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: false }
    }
}
impl Claim for FarClaim {
    async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
        let d = *self.far.faults.renew_delay.lock().unwrap();
        let r = {
            let mut rows = self.far.rows.lock().unwrap();
            match rows.get_mut(&self.key) {
                Some(Row::Claim { owner, gone, .. })
                    if *owner == self.owner || (Some(*owner) == self.former && *gone) =>
                {
                    *owner = self.owner;
                    *gone = false;
                    Ok(())
                }
                _ => Err(StoreError::Lost),
            }
        };
        tokio::time::sleep(d).await; // the acknowledgement is slow
        r
    }
    fn complete(self, record: Record, ttl: Duration) -> impl Future<Output = Result<(), StoreError>> + Send {
        if self.far.faults.panic_sync_complete.load(SeqCst) > 0 {
            panic!("on purpose")
        }
        async move {
            tokio::task::yield_now().await;
            let r = {
                let mut rows = self.far.rows.lock().unwrap();
                match rows.get(&self.key).cloned() {
                    Some(Row::Claim { owner, .. }) if owner == self.owner => {
                        rows.insert(self.key, Row::Kept { owner, record, expires: self.far.clock.now().after(ttl) });
                        Ok(())
                    }
                    Some(Row::Kept { owner, .. }) if owner == self.owner => Ok(()),
                    _ => Err(StoreError::Lost),
                }
            };
            let d = *self.far.faults.complete_ack_delay.lock().unwrap();
            tokio::time::sleep(d).await;
            if self.far.faults.lose_completes.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(StoreError::unavailable("the acknowledgement was lost"));
            }
            r
        }
    }
    async fn release(self) -> Result<(), StoreError> {
        let mut rows = self.far.rows.lock().unwrap();
        match rows.get(&self.key) {
            Some(Row::Claim { owner, .. }) if *owner == self.owner => {
                rows.remove(&self.key);
                Ok(())
            }
            _ => Err(StoreError::Lost),
        }
    }
    fn try_clone(&self) -> Option<Self> {
        Some(Self { far: self.far.clone(), ..*self })
    }
}
#[tokio::test(start_paused = true)]
async fn a_takeover_that_comes_late_is_not_released() {
    let far = Far::new();
    let mut a = attempt(1, 1);
    a.rules.abandoned = Abandoned::Rerun;
    far.abandon(a.key, a.fingerprint);
    *far.faults.renew_delay.lock().unwrap() = Duration::from_secs(6);
    let engine = Idempotency::new(far.clone());
    assert!(engine.run(a, |_| response("rerun")).await.is_err(), "no reply in time");
    engine.drain().await;
    let foreign = engine.run(attempt(1, 2), |_| response("foreign fingerprint ran")).await;
    assert!(matches!(foreign, Err(RefusalReason::Mismatch)), "{foreign:?}");
}

#[cfg(feature = "cached")]
#[tokio::test(start_paused = true)]
async fn the_cache_does_not_outlive_a_record_whose_acknowledgement_was_lost() {
    let far = Far::new();
    let clock = far.clock.clone();
    far.faults.lose_completes.store(1, SeqCst);
    let engine = Idempotency::builder(crate::CachedStore::new(far.clone())).clock(clock.clone()).build();
    let mut a = attempt(1, 1);
    a.rules.ttl = Duration::from_secs(5);
    // The clock moves while the engine pauses before its second try.
    let c2 = clock.clone();
    let mover = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        c2.advance(Duration::from_secs(3))
    });
    engine.run(a, |_| response("one")).await.unwrap();
    mover.await.unwrap();
    engine.drain().await;
    clock.advance(Duration::from_secs(3)); // 6 s after the record was made in the store, whose TTL is 5 s
    let other = Idempotency::builder(far.clone()).build(); // another process
    let mut b = attempt(1, 2);
    b.rules.ttl = a.rules.ttl;
    assert!(matches!(other.run(b, |_| response("two")).await, Ok(RunResult::Executed("two"))), "expired in the store");
    let stale = engine.run(a, |_| response("three")).await;
    assert!(matches!(stale, Err(RefusalReason::Mismatch)), "the store has a record of another fingerprint: {stale:?}");
}

#[cfg(feature = "cached")]
#[tokio::test(start_paused = true)]
async fn what_is_forgotten_does_not_come_back_with_a_late_acknowledgement() {
    let far = Far::new();
    *far.faults.complete_ack_delay.lock().unwrap() = Duration::from_millis(200);
    let layered = crate::CachedStore::new(far.clone());
    let engine = Idempotency::new(layered.clone());
    let a = attempt(1, 1);
    let e2 = engine.clone();
    let run = tokio::spawn(async move { e2.run(a, |_| response("one")).await });
    tokio::time::sleep(Duration::from_millis(100)).await; // the store has the record by now
    assert!(layered.forget(&a.key).await.unwrap());
    run.await.unwrap().unwrap();
    assert!(far.rows.lock().unwrap().is_empty());
    let again = engine.run(a, |_| response("two")).await;
    assert!(matches!(again, Ok(RunResult::Executed("two"))), "forgotten, and yet: {again:?}");
}

#[tokio::test]
async fn a_store_that_panics_before_its_future_withholds_no_response() {
    let far = Far::new();
    far.faults.panic_sync_complete.store(1, SeqCst);
    let engine = Idempotency::new(far);
    let r = engine.run(attempt(1, 1), |_| response("one")).await;
    assert!(matches!(r, Ok(RunResult::Executed("one"))), "{r:?}");
}

#[tokio::test]
async fn a_store_that_panics_in_ended_wakes_the_request() {
    let far = Far::new();
    far.faults.panic_ended.store(1, SeqCst);
    let engine = Idempotency::new(far.clone());
    let mut a = attempt(1, 1);
    a.rules.wait = Some(Duration::from_secs(1));
    let (started, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (s2, g2) = (started.clone(), go.clone());
    let e2 = engine.clone();
    let first = tokio::spawn(async move {
        e2.run(a, move |_| async move {
            s2.notify_one();
            g2.notified().await;
            response("one").await
        })
        .await
    });
    started.notified().await;
    let e3 = engine.clone();
    let second = tokio::spawn(async move { e3.run(a, |_| response("two")).await }).await;
    go.notify_one();
    first.await.unwrap().unwrap();
    assert!(second.is_ok(), "the request panicked");
}

/// Counts the events of one level.
pub(super) struct Events(pub(super) tracing::Level, pub(super) Arc<AtomicUsize>);

impl tracing::Subscriber for Events {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == self.0
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.1.fetch_add(1, SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_store_outside_the_process_without_a_namespace_is_warned_about_once() {
    let warnings = |build: &dyn Fn()| {
        let count = Arc::new(AtomicUsize::new(0));
        let _counts = crate::test_support::subscriber::set_default(Events(tracing::Level::WARN, Arc::clone(&count)));
        build();
        count.load(SeqCst)
    };
    assert_eq!(warnings(&|| drop(Idempotency::new(Far::new()).clone())), 1);
    assert_eq!(warnings(&|| drop(Idempotency::builder(Far::new()).namespace("shop").build())), 0);
    assert_eq!(warnings(&|| drop(Idempotency::in_memory())), 0, "no other process uses it");
}

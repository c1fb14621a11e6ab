//! Time: the engine's clock decides what has expired, and moka's reclaims it.

use super::*;

#[tokio::test]
async fn a_record_expires_at_its_ttl_to_the_nanosecond() {
    let (store, clock) = with_clock(MemoryStore::new());
    let held = claim(&store, 1).await;
    clock.advance(TTL * 1000);
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))), "a claim never expires");
    held.complete(record(1), TTL).await.unwrap();
    clock.advance(TTL - TICK);
    for _ in 0..3 {
        assert!(
            matches!(begin(&store, 1).await, Ok(Begin::Completed(_))),
            "counts from completion, and asking does not move it"
        );
    }
    clock.advance(TICK);
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Claimed(_))));
}

#[tokio::test]
async fn what_has_expired_cannot_be_forgotten() {
    for (age, is_forgotten) in [(TTL - TICK, true), (TTL, false)] {
        let (store, clock) = with_clock(MemoryStore::new());
        complete(&store, 1, 1).await;
        clock.advance(age);
        assert_eq!(store.forget(&key(1)).await.unwrap(), is_forgotten);
        assert_eq!(store.usage(), EMPTY);
    }
}

#[tokio::test]
async fn a_key_that_is_used_again_after_expiry_keeps_its_new_record() {
    let (store, clock) = with_clock(MemoryStore::new());
    complete(&store, 1, 1).await;
    clock.advance(TTL);
    complete(&store, 1, 2).await;
    // Whatever takes expired records away must not take the new one.
    sweep(&store);
    for number in 2..2000 {
        complete(&store, number, 1).await;
    }
    match begin(&store, 1).await {
        Ok(Begin::Completed(kept)) => assert_eq!(kept, record(2)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn memory_is_reclaimed_without_traffic() {
    let store = MemoryStore::new();
    for number in 0..1000 {
        claim(&store, number).await.complete(record(100), Duration::from_millis(20)).await.unwrap();
    }
    // No request comes: the janitor alone.
    until("the store is empty", async || store.usage().entries == 0).await;
}

#[tokio::test]
async fn the_janitor_ends_with_its_store() {
    let store = MemoryStore::new();
    complete(&store, 1, 1).await;
    let shared = Arc::downgrade(&store.inner.shared);
    drop(store);
    until("the janitor does not hold the store", async || shared.strong_count() == 0).await;
}

/// moka would remove the record by its own clock.
#[tokio::test]
async fn a_frozen_clock_loses_nothing_in_real_time() {
    let (store, clock) = with_clock(MemoryStore::new());
    let real = MemoryStore::new();
    for store in [&store, &real] {
        claim(store, 1).await.complete(record(1), Duration::from_nanos(1)).await.unwrap();
    }
    let entry = |number| store.inner.shared.shard(&key(number)).records.reclaim_after(&key(number));
    assert_eq!(entry(1), Some(None), "moka has no TTL");
    until("moka has removed the record that goes by real time", async || real.usage().entries == 0).await;
    sweep(&store);
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    clock.advance(TICK);
    claim(&store, 1).await.release().await.unwrap();
}

#[test]
fn the_longest_ttl_is_no_problem_in_real_time() {
    let store = MemoryStore::new();
    for (number, ttl) in
        [Duration::MAX, Duration::from_secs(2000 * 365 * 86_400), Duration::ZERO].into_iter().enumerate()
    {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            claim(&store, number).await.complete(record(1), ttl).await.unwrap();
            let live = matches!(begin(&store, number).await, Ok(Begin::Completed(_)));
            assert_eq!(live, !ttl.is_zero());
        });
    }
}

#[tokio::test]
async fn moka_reclaims_no_live_record_and_every_expired_one() {
    let store = MemoryStore::new();
    let day = Duration::from_secs(24 * 60 * 60);
    for (range, ttl) in [Duration::from_secs(1), day, 10 * 365 * day].into_iter().enumerate() {
        for number in (0..100).map(|number| 100 * range + number) {
            claim(&store, number).await.complete(record(1), ttl).await.unwrap();
            let records = &store.inner.shared.shard(&key(number)).records;
            let reclaim_after = records.reclaim_after(&key(number)).flatten().unwrap();
            assert!((ttl..ttl + Duration::from_secs(20)).contains(&reclaim_after), "{ttl:?}: {reclaim_after:?}");
        }
    }
}

#[test]
fn a_second_clock_is_not_ignored_silently() {
    let shared = |clock: &ManualClock| -> Arc<dyn Clock> { Arc::new(clock.clone()) };
    let (manual, other) = (ManualClock::new(), ManualClock::new());
    other.advance(TICK);
    let system = || -> Arc<dyn Clock> { Arc::new(SystemClock::new()) };
    assert!(same_time(&shared(&manual), &shared(&manual)), "clones show the same time");
    assert!(same_time(&system(), &system()));
    assert!(!same_time(&shared(&manual), &shared(&other)));
    assert!(!same_time(&shared(&manual), &system()));
    let (store, clock) = with_clock(MemoryStore::new());
    let warnings = warnings(|| {
        store.attach(&shared(&clock));
        store.attach(&shared(&other));
        store.attach(&system());
    });
    assert_eq!(warnings, 2);
}

/// Counts the warnings that `run` logs.
fn warnings(run: impl FnOnce()) -> usize {
    use std::sync::atomic::AtomicUsize;
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata};

    struct Counter(Arc<AtomicUsize>);

    impl tracing::Subscriber for Counter {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::WARN
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    let count = Arc::new(AtomicUsize::new(0));
    let _counts = crate::test_support::subscriber::set_default(Counter(Arc::clone(&count)));
    run();
    count.load(Ordering::Relaxed)
}

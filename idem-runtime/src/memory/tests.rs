use std::task::Poll;

use super::*;
use crate::clock::ManualClock;
use crate::key::Key;
use crate::record::RecordBuilder;
use crate::scope::Scope;
use crate::store::Claim;
use crate::wait::until;

const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(60);
const OPTIONS: BeginOptions = BeginOptions::new(LEASE, TTL);
const TICK: Duration = Duration::from_nanos(1);
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);
const EMPTY: Usage = Usage { in_flight: 0, completed: 0, entries: 0, bytes: 0 };

#[cfg(feature = "conformance")]
mod conformance {
    crate::conformance_tests!(|| async { crate::MemoryStore::new() });

    mod in_an_arc {
        crate::conformance_tests!(|| async { std::sync::Arc::new(crate::MemoryStore::new()) });
    }
}

#[test]
fn an_arc_of_a_store_has_the_name_of_the_store() {
    use crate::telemetry::counters::name_of;
    assert_eq!((name_of::<MemoryStore>(), name_of::<Arc<MemoryStore>>()), ("MemoryStore", "MemoryStore"));
}

fn key(number: usize) -> StorageKey {
    StorageKey::new("", &Scope::GLOBAL, &Key::parse(number.to_string().as_bytes()).unwrap())
}

fn record(bytes: usize) -> Record {
    let mut content = RecordBuilder::new();
    content.put(&vec![b'x'; bytes]);
    Record::with_content(FINGERPRINT, content, Timestamp::NEVER, None)
}

/// A key for tests that make many.
fn cheap_key(number: usize) -> StorageKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    StorageKey::from_bytes(bytes)
}

/// Removes everything that has expired.
fn sweep(store: &MemoryStore) {
    assert!(janitor::round(&Arc::downgrade(&store.inner.shared)));
}

fn with_clock(store: MemoryStore) -> (MemoryStore, ManualClock) {
    let clock = ManualClock::new();
    let shared: Arc<dyn Clock> = Arc::new(clock.clone());
    assert!(store.attach(&shared).judges_expiry);
    (store, clock)
}

async fn begin(store: &MemoryStore, number: usize) -> Result<Begin<MemoryClaim>, StoreError> {
    store.begin(&key(number), &FINGERPRINT, &OPTIONS).await
}

async fn claim(store: &MemoryStore, number: usize) -> MemoryClaim {
    match begin(store, number).await {
        Ok(Begin::Claimed(claim)) => claim,
        other => panic!("{other:?}"),
    }
}

async fn complete(store: &MemoryStore, number: usize, bytes: usize) {
    claim(store, number).await.complete(record(bytes), TTL).await.unwrap();
}

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
async fn a_full_store_refuses_new_keys_and_replays_existing_ones() {
    let (store, clock) = with_clock(MemoryStore::builder().max_entries(2).build());
    complete(&store, 1, 10).await;
    let held = claim(&store, 2).await;
    assert!(matches!(begin(&store, 3).await, Err(StoreError::Full)));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    assert!(matches!(begin(&store, 2).await, Ok(Begin::InFlight(_))));
    // Completing needs no new room.
    held.complete(record(10), TTL).await.unwrap();
    clock.advance(TTL - TICK);
    assert!(matches!(begin(&store, 3).await, Err(StoreError::Full)), "nothing live is dropped");
    clock.advance(TICK);
    drop(claim(&store, 3).await);
    complete(&store, 4, 10).await;
    assert!(matches!(begin(&store, 5).await, Err(StoreError::Full)), "an abandoned claim counts");
}

#[tokio::test]
async fn a_record_without_room_becomes_a_tombstone() {
    let (store, _clock) = with_clock(MemoryStore::builder().max_bytes(quota::KEY_BYTES + 100).build());
    complete(&store, 1, 500).await;
    match begin(&store, 1).await {
        Ok(Begin::Completed(kept)) => assert_eq!(kept, record(500).tombstone()),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.usage().bytes, quota::KEY_BYTES);
}

#[tokio::test]
async fn the_account_returns_to_zero() {
    let (store, clock) = with_clock(MemoryStore::new());
    for number in 0..2000 {
        match number % 4 {
            0 => complete(&store, number, number).await,
            1 => claim(&store, number).await.release().await.unwrap(),
            2 => {
                complete(&store, number, 1).await;
                assert!(store.forget(&key(number)).await.unwrap());
            }
            _ => {
                drop(claim(&store, number).await);
                assert!(store.forget(&key(number)).await.unwrap());
            }
        }
    }
    assert_eq!((store.usage().completed, store.usage().entries), (500, 500));
    clock.advance(TTL);
    sweep(&store);
    assert_eq!(store.usage(), EMPTY);
}

#[tokio::test]
async fn after_a_million_keys_no_lock_is_left() {
    let (store, _clock) = with_clock(MemoryStore::new());
    for number in 0..1_000_000_usize {
        let claimed = store.begin(&cheap_key(number), &FINGERPRINT, &OPTIONS).await;
        let Ok(Begin::Claimed(claim)) = claimed else { panic!("{claimed:?}") };
        claim.release().await.unwrap();
    }
    assert_eq!(store.usage(), EMPTY);
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
async fn in_a_storm_no_request_works_for_many_others() {
    const RECORDS: usize = 20_000;
    let (store, clock) = with_clock(MemoryStore::builder().max_entries(RECORDS).build());
    // The test makes the janitor's round.
    store.inner.shared.janitor.stop();
    for number in 0..RECORDS {
        complete(&store, number, 1).await;
    }
    clock.advance(TTL);
    for number in 0..100 {
        // Into a full store first, then into one that has room.
        let before = store.usage().completed;
        let held = claim(&store, RECORDS + number).await;
        let between = store.usage().completed;
        assert!(before - between <= MAX_REMOVED, "{before} to {between}");
        held.complete(record(1), TTL).await.unwrap();
        assert_eq!(store.usage().completed, between + 1, "a completion removes nothing");
    }
    assert!(store.usage().completed > RECORDS / 2, "most is left to the janitor");
    assert!(janitor::round(&Arc::downgrade(&store.inner.shared)));
    assert_eq!(store.usage().completed, 100);
}

#[tokio::test]
async fn in_real_time_a_request_looks_at_a_few_records_at_most() {
    let store = MemoryStore::builder().max_entries(4 * KEYS_PER_SHARD).build();
    let shared = &store.inner.shared;
    shared.janitor.stop();
    let expired = Duration::from_nanos(1);
    for number in 0..14_000 {
        let ttl = if number < 100 { expired } else { TTL };
        claim(&store, number).await.complete(record(1), ttl).await.unwrap();
    }
    let now = shared.clock().now().after(expired);
    // Each shard had an expired record, which is gone by now.
    for number in 0..100 {
        store.forget(&key(number)).await.unwrap();
    }
    for shard in &shared.shards {
        shard.records.run_pending_tasks(now, true);
    }
    let due = || shared.shards.iter().filter(|shard| shard.records.earliest() <= now).count();
    assert_eq!(due(), 4);
    assert_eq!(shared.make_room(now, &mut shared.max_looked_at(1)), 0);
    // Some 3,500 records are in each. It looked at two to their end, and at the next in part.
    assert_eq!(due(), 2);
}

#[tokio::test]
async fn a_sweep_that_stops_early_leaves_the_rest_to_the_next_one() {
    let (store, clock) = with_clock(MemoryStore::builder().max_entries(1).build());
    let shard = &store.inner.shared.shards[0];
    store.inner.shared.janitor.stop();
    complete(&store, 1, 1).await;
    clock.advance(TTL);
    let now = clock.now();
    assert_eq!(shard.sweep(now, MAX_REMOVED, 0).removed, 0);
    assert!(shard.records.earliest() <= now);
    assert_eq!(shard.sweep(now, MAX_REMOVED, 1).removed, 1);
    assert!(shard.records.earliest() > now);
}

#[tokio::test]
async fn however_many_shards_have_nothing_expired_the_one_that_has_makes_room() {
    let (store, clock) =
        with_clock(MemoryStore::builder().max_bytes(1000 * (quota::KEY_BYTES + record(1).bytes().len())).build());
    store.inner.shared.janitor.stop();
    for number in 0..1000 {
        complete(&store, number, 1).await;
    }
    clock.advance(TTL);
    // Nearly all are replaced by claims, which make way without a sweep.
    for number in 1..1000 {
        drop(claim(&store, number).await);
    }
    drop(claim(&store, 2000).await);
}

#[tokio::test]
async fn a_record_gets_the_room_of_expired_ones() {
    let (store, clock) = with_clock(MemoryStore::builder().max_bytes(2 * quota::KEY_BYTES + 600).build());
    store.inner.shared.janitor.stop();
    complete(&store, 1, 500).await;
    let held = claim(&store, 2).await;
    clock.advance(TTL);
    held.complete(record(500), TTL).await.unwrap();
    assert!(matches!(begin(&store, 2).await, Ok(Begin::Completed(kept)) if kept == record(500)));
}

#[tokio::test]
async fn a_record_gets_the_room_of_expired_ones_that_are_spread_over_many_shards() {
    let full = 60 * (quota::KEY_BYTES + record(1000).bytes().len());
    let (store, clock) = with_clock(MemoryStore::builder().max_bytes(full).build());
    assert_eq!(store.inner.shared.shards.len(), MAX_SHARDS);
    store.inner.shared.janitor.stop();
    for number in 0..60 {
        complete(&store, number, 1000).await;
    }
    clock.advance(TTL);
    let large = record(full - 2 * quota::KEY_BYTES - 1000);
    claim(&store, 60).await.complete(large.clone(), TTL).await.unwrap();
    assert!(matches!(begin(&store, 60).await, Ok(Begin::Completed(kept)) if kept == large));
}

/// What is left of a record of `bytes` bytes for which a full store must make room, if there are more expired records than it
/// removes.
async fn recorded_over_expired(bytes: usize) -> Record {
    let expired = (FOR_BYTES + 1) * MAX_REMOVED;
    let one = quota::KEY_BYTES + record(0).bytes().len();
    let store = MemoryStore::builder().max_entries(expired + 1).max_bytes(expired * one + quota::KEY_BYTES).build();
    let (store, clock) = with_clock(store);
    let shared = &store.inner.shared;
    assert_eq!(shared.shards.len(), 1);
    shared.janitor.stop();
    for number in 0..expired {
        complete(&store, number, 0).await;
    }
    let held = claim(&store, expired).await;
    clock.advance(TTL);
    held.complete(record(bytes - record(0).bytes().len()), TTL).await.unwrap();
    match begin(&store, expired).await {
        Ok(Begin::Completed(record)) => record,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_record_gets_the_room_of_many_expired_ones_and_no_request_removes_more() {
    let most = FOR_BYTES * MAX_REMOVED * (quota::KEY_BYTES + record(0).bytes().len());
    assert_eq!(recorded_over_expired(most).await.bytes().len(), most);
    assert!(recorded_over_expired(most + 1).await.bytes().len() < most);
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

#[tokio::test]
async fn a_claim_outlives_its_store() {
    let store = MemoryStore::new();
    let held = claim(&store, 1).await;
    drop(store);
    held.complete(record(1), TTL).await.unwrap();
}

#[tokio::test]
async fn a_waiter_of_the_previous_owner_does_not_hold_up_the_new_one() {
    let store = MemoryStore::new();
    let first = claim(&store, 1).await;
    let waiting = key(1);
    let mut waiter = std::pin::pin!(store.ended(&waiting));
    assert!(poll_once(waiter.as_mut()).await.is_pending());
    drop(first);
    let Ok(Begin::Abandoned(mut taken_over)) = begin(&store, 1).await else { panic!("abandoned") };
    taken_over.renew(LEASE).await.unwrap();
    waiter.await;
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))));
    taken_over.complete(record(1), TTL).await.unwrap();
}

async fn poll_once<F: Future<Output = ()>>(mut future: std::pin::Pin<&mut F>) -> Poll<()> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Each future of the store, dropped before it was polled and after: the key is free, has an owner, is abandoned, or
/// has a record, and in the end the store is empty. All but `ended` are ready when they are polled once.
#[tokio::test]
async fn futures_that_are_dropped_leave_the_key_in_one_of_its_states() {
    let (store, clock) = with_clock(MemoryStore::new());
    let at = key(1);
    // Not polled, they have not happened.
    drop(store.begin(&at, &FINGERPRINT, &OPTIONS));
    assert_eq!(store.usage().entries, 0);
    let mut held = claim(&store, 1).await;
    drop(store.forget(&at));
    drop(held.renew(LEASE));
    drop(store.ended(&at));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))));
    // The claim is dropped with the future that took it.
    drop(held.complete(record(1), TTL));
    let Ok(Begin::Abandoned(taken_over)) = begin(&store, 1).await else { panic!("abandoned") };
    drop(taken_over.release());
    let Ok(Begin::Abandoned(mut taken_over)) = begin(&store, 1).await else { panic!("still abandoned") };
    taken_over.renew(LEASE).await.unwrap();
    // A waiter that is dropped while it waits, at each number of polls, holds up no one.
    for polls in 0..4 {
        let mut waiter = Box::pin(store.ended(&at));
        for _ in 0..polls {
            assert!(poll_once(waiter.as_mut()).await.is_pending());
        }
    }
    taken_over.complete(record(1), TTL).await.unwrap();
    store.ended(&at).await;
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    // Not polled, a record is not forgotten; an expired one makes way for a claim.
    drop(store.forget(&at));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    clock.advance(TTL);
    claim(&store, 1).await.release().await.unwrap();
    assert_eq!(store.usage(), EMPTY);
}

#[tokio::test]
async fn a_waiter_that_is_dropped_hands_the_end_on_to_the_others() {
    let store = MemoryStore::new();
    let (held, at) = (claim(&store, 1).await, key(1));
    let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(store.ended(&at))).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).await.is_pending());
    }
    held.complete(record(1), TTL).await.unwrap();
    // The first has been woken, and is dropped before it is polled.
    drop(waiters.remove(0));
    for waiter in waiters {
        waiter.await;
    }
}

#[tokio::test]
async fn a_waiter_that_is_never_polled_does_not_hold_up_the_others() {
    let store = MemoryStore::new();
    let (held, at) = (claim(&store, 1).await, key(1));
    let mut waiters: Vec<_> = (0..20).map(|_| Box::pin(store.ended(&at))).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).await.is_pending());
    }
    held.complete(record(1), TTL).await.unwrap();
    // The first stays where it is, woken and not polled.
    let unpolled = waiters.remove(0);
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).await.is_ready());
    }
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    drop(unpolled);
}

#[tokio::test]
async fn each_end_of_a_claim_wakes_the_waiters() {
    let store = MemoryStore::new();
    for end in 0..4 {
        let held = claim(&store, end).await;
        let at = key(end);
        let mut waiter = std::pin::pin!(store.ended(&at));
        assert!(poll_once(waiter.as_mut()).await.is_pending());
        match end {
            0 => held.complete(record(1), TTL).await.unwrap(),
            1 => held.release().await.unwrap(),
            2 => drop(held),
            _ => drop(held.complete(record(1), TTL)),
        }
        assert!(poll_once(waiter.as_mut()).await.is_ready(), "{end}");
    }
}

#[tokio::test]
async fn what_is_forgotten_is_not_kept_alive() {
    /// Bytes that count how many of them there are.
    struct Counted {
        _alive: Arc<()>,
        bytes: Vec<u8>,
    }

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    const MIB: usize = 1 << 20;
    let store = MemoryStore::new();
    let alive = Arc::new(());
    for number in 0..400 {
        let bytes = bytes::Bytes::from_owner(Counted { _alive: Arc::clone(&alive), bytes: vec![1; MIB] });
        claim(&store, number).await.complete(Record::new(FINGERPRINT, bytes), TTL).await.unwrap();
        if number >= 20 {
            assert!(store.forget(&key(number - 20)).await.unwrap());
        }
        assert!(Arc::strong_count(&alive) - 1 <= 21);
    }
    assert_eq!(store.usage().bytes, 20 * (MIB + quota::KEY_BYTES));
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

#[tokio::test]
async fn a_claim_is_revoked_even_if_the_store_is_full_and_nothing_else_takes_room() {
    let (store, _clock) = with_clock(MemoryStore::builder().max_entries(1).build());
    let held = claim(&store, 1).await;
    assert!(!store.revoke(&key(2)).await.unwrap(), "there is none");
    assert_eq!(store.usage().entries, 1);
    assert!(store.revoke(&key(1)).await.unwrap());
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Abandoned(_))));
    assert!(matches!(held.complete(record(1), TTL).await, Err(StoreError::Lost)));
    assert_eq!(store.usage().entries, 1);
}

#[tokio::test]
async fn in_real_time_a_full_store_has_room_when_a_record_expires() {
    let store = MemoryStore::builder().max_entries(1).build();
    let ttl = Duration::from_millis(50);
    claim(&store, 1).await.complete(record(1), ttl).await.unwrap();
    let completed = std::time::Instant::now();
    until("the TTL has passed", async || completed.elapsed() > ttl).await;
    drop(claim(&store, 2).await);
}

#[tokio::test]
async fn in_real_time_an_expired_record_that_moka_hides_makes_room_for_its_key() {
    let store = MemoryStore::builder().max_entries(1).build();
    store.inner.shared.janitor.stop();
    claim(&store, 1).await.complete(record(1), Duration::from_millis(1)).await.unwrap();
    // Until moka hides it, and before its timer wheel turns.
    let records = &store.inner.shared.shard(&key(1)).records;
    until("moka hides it", async || records.reclaim_after(&key(1)).is_none()).await;
    claim(&store, 1).await.complete(record(2), TTL).await.unwrap();
    assert_eq!(store.usage().entries, 1);
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

#[tokio::test]
async fn only_a_request_with_the_same_fingerprint_counts_as_a_replay() {
    let store = MemoryStore::new();
    claim(&store, 1).await.complete(record(1), TTL).await.unwrap();
    let other = Fingerprint::from_bytes([8; 32]);
    for (fingerprint, replays) in [(&other, 0), (&FINGERPRINT, 1), (&other, 1), (&FINGERPRINT, 2)] {
        assert!(matches!(store.begin(&key(1), fingerprint, &OPTIONS).await, Ok(Begin::Completed(_))));
        assert_eq!(store.inspect(&key(1)).await.unwrap().unwrap().replays, Some(replays));
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
    let _counts = crate::subscriber::set_default(Counter(Arc::clone(&count)));
    run();
    count.load(Ordering::Relaxed)
}

#[tokio::test]
async fn small_stores_have_one_shard_and_large_ones_as_many_as_they_need() {
    let shards = |entries| MemoryStore::builder().max_entries(entries).build().inner.shared.shards.len();
    assert_eq!([0, 1, 4096, 10_000, 1_000_000, usize::MAX].map(shards), [1, 1, 1, 2, 256, MAX_SHARDS]);
    // Keys meet in no shard more often than chance has it.
    let store = MemoryStore::new();
    let mut keys = vec![0_usize; 256];
    for number in 0..256_000 {
        let shared = &store.inner.shared;
        let at = shared.shards.iter().position(|shard| std::ptr::eq(shard, shared.shard(&cheap_key(number))));
        keys[at.unwrap()] += 1;
    }
    assert!(keys.iter().all(|keys| (800..1200).contains(keys)), "{keys:?}");
}

#[tokio::test]
async fn pages_of_unknown_outcomes_are_of_whole_shards_and_each_key_is_in_one() {
    for (max_entries, keys, pages) in [(2 * KEYS_PER_SHARD, 6 * MAX_PAGE, 2), (16 * KEYS_PER_SHARD, 3, 1)] {
        let store = MemoryStore::builder().max_entries(max_entries).build();
        for number in 0..keys {
            drop(store.begin(&cheap_key(number), &FINGERPRINT, &OPTIONS).await.unwrap());
        }
        let (mut seen, mut next) = (Vec::new(), None);
        for page in 1..=pages {
            let found = store.inspect_unknown(next.as_ref()).await.unwrap();
            seen.extend(found.keys.iter().map(|(key, _)| *key.as_bytes()));
            assert_eq!(found.next.is_some(), page < pages, "page {page}");
            assert!(seen.len() < keys || page == pages, "page {page} has everything");
            next = found.next;
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), keys);
    }
}

#[test]
fn a_store_has_room_for_a_million_keys_and_a_gibibyte() {
    let MemoryStoreBuilder { max_entries, max_bytes } = MemoryStore::builder();
    assert_eq!((max_entries, max_bytes), (1_000_000, 1 << 30));
}

//! A full store: whom it refuses, and how it makes room.

use super::*;

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
    for number in 0..7_000 {
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
    // Some 1,750 records are in each. It looked at two to their end, and at the next in part.
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
    assert!(store.inner.shared.shards.len() > 60);
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
async fn a_claim_is_revoked_even_if_the_store_is_full_and_nothing_else_takes_room() {
    let (store, _clock) = with_clock(MemoryStore::builder().max_entries(1).build());
    let held = claim(&store, 1).await;
    assert!(!store.revoke(&key(2)).await.unwrap(), "there is none");
    assert_eq!(store.usage().entries, 1);
    assert!(store.revoke(&key(1)).await.unwrap());
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Abandoned(_))));
    let Usage { in_flight, completed, entries, .. } = store.usage();
    assert_eq!((in_flight, completed, entries), (1, 0, 2), "the previous owner takes room, and has left no record");
    assert!(matches!(held.complete(record(1), TTL).await, Err(StoreError::Lost)));
    let Usage { in_flight, completed, entries, .. } = store.usage();
    assert_eq!((in_flight, completed, entries), (1, 0, 1));
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

/// A clock that goes as the test says, and passes for real time: moka's own does not go with it.
struct RealTime(ManualClock);

impl Clock for RealTime {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn is_real_time(&self) -> bool {
        true
    }
}

/// The same for a store. The test makes the janitor's rounds.
fn in_real_time(store: MemoryStore) -> (MemoryStore, ManualClock) {
    let clock = ManualClock::new();
    let real_time: Arc<dyn Clock> = Arc::new(RealTime(clock.clone()));
    store.attach(&real_time);
    store.inner.shared.janitor.stop();
    (store, clock)
}

#[tokio::test]
async fn in_real_time_a_store_that_may_soon_be_full_drops_what_has_expired_before_moka_hides_it() {
    let large = 10_000_000;
    for (max_entries, max_bytes, is_dropped) in
        [(100, usize::MAX, true), (large, 12 * quota::KEY_BYTES, true), (large, usize::MAX, false)]
    {
        let store = MemoryStore::builder().max_entries(max_entries).max_bytes(max_bytes).build();
        let (store, clock) = in_real_time(store);
        for number in 0..9 {
            complete(&store, number, 1).await;
        }
        // Once a second is often enough.
        clock.advance(TTL + records::GRACE / 2 - TICK);
        sweep(&store);
        assert_eq!(store.usage().entries, 9);
        clock.advance(TICK);
        sweep(&store);
        assert_eq!(store.usage().entries, if is_dropped { 0 } else { 9 }, "of {max_entries}");
    }
}

#[tokio::test]
async fn in_real_time_the_janitor_looks_at_a_part_of_a_large_store_in_a_round() {
    let records = 18_000;
    // Of so few bytes little is ever left.
    let store = MemoryStore::builder().max_entries(20_000).max_bytes(60_000_000).build();
    let (store, clock) = in_real_time(store);
    assert_eq!(store.inner.shared.shards.len(), 2);
    for number in 0..records {
        complete(&store, number, 1).await;
    }
    clock.advance(TTL + records::GRACE);
    let mut left = store.usage().entries;
    for _ in 0..2 {
        sweep(&store);
        let removed = left - store.usage().entries;
        assert!((records / 3..records * 2 / 3).contains(&removed), "{removed}");
        left -= removed;
    }
    assert_eq!(left, 0);
}

#[test]
fn a_store_has_room_for_a_million_keys_and_a_gibibyte() {
    let MemoryStoreBuilder { max_entries, max_bytes } = MemoryStore::builder();
    assert_eq!((max_entries, max_bytes), (1_000_000, 1 << 30));
}

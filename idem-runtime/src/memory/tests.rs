use std::task::Poll;

use super::*;
use crate::clock::ManualClock;
use crate::key::Key;
use crate::record::Draft;
use crate::scope::Scope;

const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_nanos(1);
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);

#[cfg(feature = "conformance")]
mod conformance {
    crate::conformance_tests!(|| async { crate::MemoryStore::new() });
}

fn key(number: usize) -> StorageKey {
    StorageKey::new(&Scope::GLOBAL, &Key::parse(number.to_string().as_bytes()).unwrap())
}

fn record(bytes: usize) -> Record {
    let mut draft = Draft::new();
    draft.put(&vec![b'x'; bytes]);
    Record::answer(FINGERPRINT, draft, Timestamp::NEVER, None)
}

fn with_clock(store: MemoryStore) -> (MemoryStore, ManualClock) {
    let clock = ManualClock::new();
    let shared: Arc<dyn Clock> = Arc::new(clock.clone());
    assert_eq!(store.attach(&shared), Duties::NONE);
    (store, clock)
}

async fn begin(store: &MemoryStore, number: usize) -> Result<Begin<MemoryClaim>, StoreError> {
    store.begin(&key(number), &FINGERPRINT, LEASE).await
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
async fn a_record_is_over_at_its_ttl_to_the_nanosecond() {
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
async fn a_full_store_refuses_new_keys_and_answers_existing_ones() {
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
async fn an_answer_without_room_becomes_a_tombstone() {
    let (store, _clock) = with_clock(MemoryStore::builder().max_bytes(permits::KEY_BYTES + 100).build());
    complete(&store, 1, 500).await;
    match begin(&store, 1).await {
        Ok(Begin::Completed(kept)) => assert_eq!(kept, record(500).tombstone()),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.usage().bytes, permits::KEY_BYTES);
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
    while store.inner.shards.make_room(store.inner.shards.now()) {}
    assert_eq!(store.usage(), Usage { in_flight: 0, completed: 0, entries: 0, bytes: 0 });
}

#[tokio::test]
async fn after_a_million_keys_no_lock_is_left() {
    let (store, _clock) = with_clock(MemoryStore::new());
    for number in 0..1_000_000_usize {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[31] = bytes[0];
        let claimed = store.begin(&StorageKey::from_bytes(bytes), &FINGERPRINT, LEASE).await;
        let Ok(Begin::Claimed(claim)) = claimed else { panic!("{claimed:?}") };
        claim.release().await.unwrap();
    }
    assert_eq!(store.usage(), Usage { in_flight: 0, completed: 0, entries: 0, bytes: 0 });
}

#[tokio::test]
async fn a_key_that_is_used_again_after_expiry_keeps_its_new_record() {
    let (store, clock) = with_clock(MemoryStore::new());
    complete(&store, 1, 1).await;
    clock.advance(TTL);
    complete(&store, 1, 2).await;
    // Whatever takes expired records away must not take the new one.
    while store.inner.shards.make_room(store.inner.shards.now()) {}
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
    store.inner.janitor.stop();
    for number in 0..RECORDS {
        complete(&store, number, 1).await;
    }
    clock.advance(TTL);
    for number in 0..100 {
        // Into a full store first, then into one that has room.
        let before = store.usage().completed;
        let held = claim(&store, RECORDS + number).await;
        let between = store.usage().completed;
        assert!(before - between <= IN_PASSING + WHEN_FULL, "{before} to {between}");
        held.complete(record(1), TTL).await.unwrap();
        assert_eq!(store.usage().completed, between + 1, "a completion takes nothing away");
    }
    assert!(store.usage().completed > RECORDS / 2, "most is left to the janitor");
    janitor::round(&Arc::downgrade(&store.inner.shards));
    assert_eq!(store.usage().completed, 100);
}

#[tokio::test]
async fn memory_is_given_back_in_silence() {
    let store = MemoryStore::new();
    for number in 0..1000 {
        claim(&store, number).await.complete(record(100), Duration::from_millis(20)).await.unwrap();
    }
    // No request comes by: the janitor alone.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.usage().entries > 0 {
        assert!(std::time::Instant::now() < deadline, "{:?}", store.usage());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_janitor_goes_with_its_store() {
    let store = MemoryStore::new();
    let (shards, stop) = (Arc::downgrade(&store.inner.shards), Arc::downgrade(&store.inner.janitor));
    drop(store);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while shards.strong_count() + stop.strong_count() > 0 {
        assert!(std::time::Instant::now() < deadline, "the janitor keeps a store alive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_claim_outlives_its_store() {
    let store = MemoryStore::new();
    let held = claim(&store, 1).await;
    drop(store);
    held.complete(record(1), TTL).await.unwrap();
}

#[tokio::test]
async fn a_waiter_of_a_former_owner_does_not_hold_the_heir_up() {
    let store = MemoryStore::new();
    let first = claim(&store, 1).await;
    let waiting = key(1);
    let mut waiter = std::pin::pin!(store.ended(&waiting));
    assert!(futures_poll(waiter.as_mut()).await.is_pending());
    drop(first);
    let Ok(Begin::Abandoned(mut heir)) = begin(&store, 1).await else { panic!("abandoned") };
    heir.renew(LEASE).await.unwrap();
    waiter.await;
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))));
    heir.complete(record(1), TTL).await.unwrap();
}

async fn futures_poll<F: Future<Output = ()>>(mut future: std::pin::Pin<&mut F>) -> Poll<()> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Each future of the store, dropped before it was polled and after: the key is free, has an owner, is abandoned, or
/// has a record, and in the end nothing is left on the account. All but `ended` are ready when they are polled once.
#[tokio::test]
async fn futures_that_are_dropped_leave_the_key_in_one_of_its_states() {
    let (store, clock) = with_clock(MemoryStore::new());
    let at = key(1);
    // Not polled, they have not happened.
    drop(store.begin(&at, &FINGERPRINT, LEASE));
    assert_eq!(store.usage().entries, 0);
    let mut held = claim(&store, 1).await;
    drop(store.forget(&at));
    drop(held.renew(LEASE));
    drop(store.ended(&at));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::InFlight(_))));
    // The claim goes with the future that took it: its owner is gone.
    drop(held.complete(record(1), TTL));
    let Ok(Begin::Abandoned(heir)) = begin(&store, 1).await else { panic!("abandoned") };
    drop(heir.release());
    let Ok(Begin::Abandoned(mut heir)) = begin(&store, 1).await else { panic!("still abandoned") };
    heir.renew(LEASE).await.unwrap();
    // A waiter that is dropped while it waits, at each number of polls, holds nobody up.
    for polls in 0..4 {
        let mut waiter = Box::pin(store.ended(&at));
        for _ in 0..polls {
            assert!(futures_poll(waiter.as_mut()).await.is_pending());
        }
    }
    heir.complete(record(1), TTL).await.unwrap();
    store.ended(&at).await;
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    // Not polled, a record is not forgotten; and one that is over is not taken away by asking alone.
    drop(store.forget(&at));
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
    clock.advance(TTL);
    claim(&store, 1).await.release().await.unwrap();
    assert_eq!(store.usage(), Usage { in_flight: 0, completed: 0, entries: 0, bytes: 0 });
}

#[tokio::test]
async fn a_waiter_that_is_dropped_hands_the_end_on_to_the_others() {
    let store = MemoryStore::new();
    let (held, at) = (claim(&store, 1).await, key(1));
    let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(store.ended(&at))).collect();
    for waiter in &mut waiters {
        assert!(futures_poll(waiter.as_mut()).await.is_pending());
    }
    held.complete(record(1), TTL).await.unwrap();
    // The first has been woken, and goes before it looks.
    drop(waiters.remove(0));
    for waiter in waiters {
        waiter.await;
    }
}

use super::*;
use crate::clock::ManualClock;
use crate::key::Key;
use crate::record::RecordBuilder;
use crate::scope::Scope;
use crate::store::Claim;
use crate::test_support::wait::until;

mod clocks;
mod room;
mod waiters;

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
    assert_eq!([name_of::<MemoryStore>(), name_of::<Arc<Arc<MemoryStore>>>()], ["MemoryStore"; 2]);
    assert_eq!([name_of::<Option<MemoryStore>>(), name_of::<Arc<Option<Arc<MemoryStore>>>>()], ["Option"; 2]);
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
async fn a_claim_outlives_its_store() {
    let store = MemoryStore::new();
    let held = claim(&store, 1).await;
    drop(store);
    held.complete(record(1), TTL).await.unwrap();
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

#[tokio::test]
async fn small_stores_have_one_shard_and_large_ones_as_many_as_they_need() {
    let shards = |entries| MemoryStore::builder().max_entries(entries).build().inner.shared.shards.len();
    assert_eq!([0, 1, 8192, 20_000, 1_000_000, usize::MAX].map(shards), [1, 1, 1, 2, 128, MAX_SHARDS]);
    // Keys meet in no shard more often than chance has it.
    let store = MemoryStore::new();
    let mut keys = vec![0_usize; 128];
    for number in 0..128_000 {
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

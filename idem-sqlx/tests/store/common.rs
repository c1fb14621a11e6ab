//! Keys, fingerprints and records for tests, and what a store says to them.
#![allow(dead_code, reason = "with one feature alone, some of it is not used")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{
    Attempt, Begin, BeginOptions, Claim, Executed, Fingerprint, Outcome, Record, RecordBuilder, Recording, Rules,
    StorageKey, Store, StoreError,
};
use idem_sqlx::{DatabaseError, Problem};
use idem_testkit::wait::until;

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const TTL: Duration = Duration::from_secs(60 * 60);
pub(crate) static OPTIONS: BeginOptions = BeginOptions::new(LEASE, TTL);
/// So short that a test can wait until it has expired.
pub(crate) const SHORT: Duration = Duration::from_millis(150);
pub(crate) const MINE: Fingerprint = Fingerprint::from_bytes([7; 32]);
pub(crate) const OTHER: Fingerprint = Fingerprint::from_bytes([8; 32]);

/// Returns a key that no other call returns.
pub(crate) fn key() -> StorageKey {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    numbered(NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn numbered(number: u64) -> StorageKey {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    StorageKey::from_bytes(key)
}

/// The key as it is written in SQL after a backslash or an x.
pub(crate) fn hex(key: &StorageKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn record(text: &str) -> Record {
    Record::new(MINE, Bytes::copy_from_slice(text.as_bytes()))
}

/// A record as the engine makes it, which can become a tombstone.
pub(crate) fn attempt(key: StorageKey) -> Attempt {
    Attempt::new(key, MINE, Rules { ttl: TTL, ..Rules::DEFAULT })
}

/// The execution of a handler whose response is `text`.
pub(crate) fn executed(text: &str) -> Executed<String> {
    let mut builder = RecordBuilder::new();
    builder.put(text.as_bytes());
    Executed { response: text.to_owned(), recording: Recording::Done(Outcome::Record(builder)) }
}

pub(crate) async fn claim<S: Store>(store: &S, key: &StorageKey) -> S::Claim {
    claim_for(store, key, LEASE, TTL).await
}

pub(crate) async fn claim_for<S: Store>(store: &S, key: &StorageKey, lease: Duration, ttl: Duration) -> S::Claim {
    match store.begin(key, &MINE, &BeginOptions::new(lease, ttl)).await {
        Ok(Begin::Claimed(claim)) => claim,
        begun => panic!("a free key can be claimed, but `begin` gave {}", shown(&begun)),
    }
}

/// Begins until the key can be claimed, once an earlier claim was released.
pub(crate) async fn claim_in_time<S: Store>(store: &S, key: &StorageKey) -> S::Claim {
    let mut claimed = None;
    until("the key is free", async || {
        match store.begin(key, &MINE, &OPTIONS).await {
            Ok(Begin::Claimed(claim)) => claimed = Some(claim),
            Ok(Begin::InFlight(_)) => {}
            begun => panic!("the key becomes free, but `begin` gave {}", shown(&begun)),
        }
        claimed.is_some()
    })
    .await;
    claimed.expect("it was claimed")
}

/// Waits until the lease of the claim under `key` has expired.
pub(crate) async fn abandoned<S: Store>(store: &S, key: &StorageKey) -> S::Claim {
    let mut found = None;
    until("the lease has expired", async || {
        match store.begin(key, &MINE, &OPTIONS).await {
            Ok(Begin::Abandoned(claim)) => found = Some(claim),
            Ok(Begin::InFlight(found)) => assert_eq!(found, MINE),
            begun => panic!("a claim without an owner stays, but `begin` gave {}", shown(&begun)),
        }
        found.is_some()
    })
    .await;
    found.expect("it was found")
}

pub(crate) async fn leave_record<S: Store>(store: &S, key: &StorageKey, text: &str) {
    claim(store, key).await.complete(record(text), TTL).await.expect("the owner completes");
}

/// The result of `begin`, in words.
pub(crate) async fn state_of<S: Store>(store: &S, key: &StorageKey) -> String {
    shown(&store.begin(key, &MINE, &OPTIONS).await)
}

pub(crate) fn shown<C>(begun: &Result<Begin<C>, StoreError>) -> String {
    match begun {
        Ok(Begin::Claimed(_)) => "claimed".into(),
        Ok(Begin::Abandoned(_)) => "abandoned".into(),
        Ok(Begin::InFlight(_)) => "in flight".into(),
        Ok(Begin::Completed(record)) => format!("completed: {}", String::from_utf8_lossy(record.bytes())),
        Err(StoreError::Unavailable(source)) => format!("unavailable: {source}"),
        Err(StoreError::Unreadable(source)) => format!("unreadable: {source}"),
        Err(error) => error.to_string(),
    }
}

/// What prevented it.
pub(crate) fn problem(error: &StoreError) -> &Problem {
    let (StoreError::Unavailable(source) | StoreError::Unreadable(source)) = error else {
        panic!("neither unavailable nor unreadable, but {error}")
    };
    let source: &(dyn Error + Send + Sync + 'static) = &**source;
    &source.downcast_ref::<DatabaseError>().expect("an error of this crate").problem
}

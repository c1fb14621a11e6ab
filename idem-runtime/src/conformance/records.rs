//! What a store must do with records.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{Attached, TTL, content, expires_at, fingerprint, key, options, record, shown, within};
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::store::{Begin, Claim, Store};

/// Long enough for a slow machine to look before it expires, short enough to wait for.
const SHORT: Duration = Duration::from_millis(400);

/// Bytes come back as they went in: none, binary, and many.
pub async fn bytes_come_back_as_they_went_in<S: Store>(store: &Attached<S>) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let many = vec![0xa5; 1 << 20];
    for bytes in [&[][..], &every_byte, &many] {
        let (key, mine) = (key(), fingerprint("mine"));
        let kept = record(&mine, bytes, TTL);
        store.claim(&key, &mine).await.complete(kept.clone(), TTL).await.expect("the owner completes");
        let found = store.record(&key, &mine).await;
        assert_eq!(found.fingerprint(), &mine, "the fingerprint comes back");
        assert_eq!(content(&found).as_deref(), Some(bytes), "the bytes come back");
        assert_eq!(expires_at(&found), expires_at(&kept), "the expiry comes back");
    }
}

/// What happens under one key does not touch another.
pub async fn keys_do_not_touch_each_other<S: Store>(store: &Attached<S>) {
    let mine = fingerprint("mine");
    let keys: Vec<_> = (0..200).map(|_| key()).collect();
    let mut claims = Vec::new();
    for key in &keys {
        claims.push(store.claim(key, &mine).await);
    }
    for (index, claim) in claims.into_iter().enumerate() {
        if index % 2 == 0 {
            let kept = record(&mine, &index.to_le_bytes(), TTL);
            claim.complete(kept, TTL).await.expect("the owner completes");
        } else {
            claim.release().await.expect("the owner releases");
        }
    }
    for (index, key) in keys.iter().enumerate() {
        match store.begin(key, &mine).await {
            Ok(Begin::Completed(found)) if index % 2 == 0 => {
                assert_eq!(content(&found).as_deref(), Some(&index.to_le_bytes()[..]), "each key has its own record");
            }
            Ok(Begin::Claimed(claim)) if index % 2 == 1 => claim.release().await.expect("the owner releases"),
            begun => panic!("key {index} has what another key should have: {}", shown(&begun)),
        }
    }
}

/// Nothing live is dropped to make room: of thousands of claims and records, all are there.
pub async fn nothing_live_is_evicted<S: Store>(store: &Attached<S>) {
    const KEYS: usize = 3000;
    let mine = fingerprint("mine");
    let keys: Vec<_> = (0..KEYS).map(|_| key()).collect();
    let mut claims = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        match store.begin(key, &mine).await {
            Ok(Begin::Claimed(claim)) if index % 2 == 0 => claims.push(claim),
            Ok(Begin::Claimed(claim)) => {
                claim.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes");
            }
            // A store that is full says so, and keeps what it has.
            Err(StoreError::Full) => return,
            begun => panic!("a free key can be claimed, but `begin` gave {}", shown(&begun)),
        }
    }
    for (index, key) in keys.iter().enumerate() {
        match store.begin(key, &mine).await {
            Ok(Begin::InFlight(_)) if index % 2 == 0 => {}
            Ok(Begin::Completed(_)) if index % 2 == 1 => {}
            begun => panic!("claim or record {index} of {KEYS} is gone: `begin` gave {}", shown(&begun)),
        }
    }
    for claim in claims {
        claim.release().await.expect("the owner releases");
    }
}

/// A record lives for its TTL, and then the key is free. For stores that judge expiry themselves.
pub async fn a_record_expires_at_its_ttl_and_not_before<S: Store>(store: &Attached<S>) {
    if !store.capabilities.judges_expiry {
        return;
    }
    let (key, mine) = (key(), fingerprint("mine"));
    let claim = store.claim(&key, &mine).await;
    let clock = SystemClock::new();
    let earliest = clock.now().after(SHORT);
    claim.complete(record(&mine, b"response", SHORT), SHORT).await.expect("the owner completes");
    within("the record has expired", async {
        loop {
            match store.begin(&key, &mine).await {
                Ok(Begin::Completed(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Ok(Begin::Claimed(_)) => break assert!(clock.now() >= earliest, "the record was gone before its TTL"),
                begun => panic!(
                    "a record is found until it expires, and then the key is free, but `begin` returned {}",
                    shown(&begun)
                ),
            }
        }
    })
    .await;
}

/// Asking for a record does not make it live longer.
pub async fn asking_does_not_move_the_ttl<S: Store>(store: &Attached<S>) {
    if !store.capabilities.judges_expiry {
        return;
    }
    let (key, mine) = (key(), fingerprint("mine"));
    store
        .claim(&key, &mine)
        .await
        .complete(record(&mine, b"response", SHORT), SHORT)
        .await
        .expect("the owner completes");
    let asked = tokio::time::timeout(SHORT * 20, async {
        while matches!(store.begin(&key, &mine).await, Ok(Begin::Completed(_))) {
            tokio::time::sleep(SHORT / 8).await;
        }
    });
    asked.await.expect("a record that is asked for all the time expires at its TTL");
}

/// When a record has expired, `begin` is one atomic step again.
pub async fn of_many_begins_on_an_expired_record_one_claims<S: Store>(store: &Attached<S>) {
    const CALLERS: usize = 16;
    if !store.capabilities.judges_expiry {
        return;
    }
    let (key, mine) = (key(), fingerprint("mine"));
    store
        .claim(&key, &mine)
        .await
        .complete(record(&mine, b"response", SHORT), SHORT)
        .await
        .expect("the owner completes");
    let together = Arc::new(Barrier::new(CALLERS));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (store, together) = (Arc::clone(&store.store), Arc::clone(&together));
        callers.spawn(async move {
            together.wait().await;
            loop {
                match store.begin(&key, &mine, &options()).await {
                    Ok(Begin::Completed(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Ok(Begin::Claimed(claim)) => break Some(claim),
                    Ok(Begin::InFlight(_)) => break None,
                    begun => panic!("an expired record is claimed once, but `begin` gave {}", shown(&begun)),
                }
            }
        });
    }
    let mut claims = Vec::new();
    while let Some(claim) = within("the record has expired", callers.join_next()).await {
        claims.extend(claim.expect("no panic"));
    }
    assert_eq!(claims.len(), 1, "of many concurrent `begin`s on an expired record exactly one claims");
}

/// A forgotten record is gone, and forgetting says whether there was one.
pub async fn what_is_forgotten_is_gone<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    assert!(!store.store.forget(&key).await.expect("`forget` returns"), "there was nothing to forget");
    store.claim(&key, &mine).await.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes");
    assert!(store.store.forget(&key).await.expect("`forget` returns"), "there was a record to forget");
    assert!(!store.store.forget(&key).await.expect("`forget` returns"), "it is forgotten");
    store.claim(&key, &mine).await.release().await.expect("the owner releases");
}

/// A claim whose owner is alive is not forgotten: its handler runs.
pub async fn a_claim_with_an_owner_is_not_forgotten<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    let claim = store.claim(&key, &mine).await;
    assert!(!store.store.forget(&key).await.expect("`forget` returns"), "a claim with an owner stays");
    assert!(matches!(store.begin(&key, &mine).await, Ok(Begin::InFlight(_))), "a claim with an owner stays");
    claim.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes");
    store.record(&key, &mine).await;
}

//! How long a claim lives, by the server's clock, and who may take it over.

use std::time::Duration;

use idem_runtime::{Begin, BeginOptions, Claim, KeyState, Store, StoreError};
use idem_testkit::redis::Redis;

use crate::common::*;

/// How long Redis keeps the key, in milliseconds.
async fn kept_for(server: &Redis) -> u64 {
    let said = server.say(&format!("PTTL {}", name(1))).await;
    said.lines().next().unwrap()[1..].trim().parse().unwrap_or_else(|_| panic!("the key has no end: {said}"))
}

#[tokio::test]
async fn a_claim_outlives_its_lease_for_its_ttl_and_every_value_expires() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let short = Duration::from_millis(50);
    let near = |milliseconds: u64, duration: Duration| {
        let expected = u64::try_from(duration.as_millis()).unwrap();
        assert!(
            milliseconds <= expected && milliseconds + 10_000 > expected,
            "{milliseconds} is not near {duration:?}"
        );
    };
    let Ok(Begin::Claimed(mut claimed)) = store.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await
    else {
        panic!("the key is free");
    };
    near(kept_for(&server).await, short + TTL);
    until("the lease has expired", async || matches!(begin(&store, 1).await, Ok(Begin::Abandoned(_)))).await;
    assert!(matches!(
        store.begin(&key(1), &fingerprint(2), &BeginOptions::new(LEASE, TTL)).await,
        Ok(Begin::InFlight(found)) if found == fingerprint(1)
    ));
    // Its owner was only late, and no other owner came in between.
    server.say(&format!("PEXPIRE {} 5000", name(1))).await;
    claimed.renew(short).await.unwrap();
    near(kept_for(&server).await, short + TTL);
    until("the lease has expired", async || matches!(begin(&store, 1).await, Ok(Begin::Abandoned(_)))).await;
    claimed.complete(record("response"), 2 * TTL).await.unwrap();
    near(kept_for(&server).await, 2 * TTL);
    // Also if the lease is longer than the TTL.
    assert!(store.forget(&key(1)).await.unwrap());
    store.begin(&key(1), &fingerprint(1), &BeginOptions::new(LEASE, LEASE / 2)).await.unwrap();
    near(kept_for(&server).await, LEASE + LEASE / 2);
}

#[tokio::test]
async fn an_abandoned_claim_is_taken_over_with_its_key_and_its_late_owner_has_lost_it() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let short = Duration::from_millis(50);
    let Ok(Begin::Claimed(mut late)) = store.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await
    else {
        panic!("the key is free");
    };
    let mut early = abandoned(&store).await;
    // An owner that comes back in time keeps its claim, though a new owner has seen it abandoned.
    late.renew(short).await.unwrap();
    assert!(matches!(early.renew(LEASE).await, Err(StoreError::Lost)));
    let mut new_owner = abandoned(&store).await;
    // Before it takes over, the new owner has no right to end the claim.
    assert!(matches!(new_owner.try_clone().unwrap().complete(record("new owner"), TTL).await, Err(StoreError::Lost)));
    new_owner.renew(LEASE).await.unwrap();
    new_owner.renew(LEASE).await.unwrap();
    assert!(matches!(late.try_clone().unwrap().release().await, Err(StoreError::Lost)));
    assert!(matches!(late.complete(record("late"), TTL).await, Err(StoreError::Lost)));
    new_owner.complete(record("new owner"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("new owner"));
}

/// Lets a claim with this lease be as old as this, as far as the server knows: so much is gone of its life.
async fn age(server: &Redis, lease: Duration, age: Duration) {
    let left = u64::try_from((lease + TTL - age).as_millis()).unwrap();
    assert!(server.say(&format!("PEXPIRE {} {left}", name(1))).await.starts_with(":1"));
}

#[tokio::test]
async fn a_claim_of_a_long_ttl_is_abandoned_when_its_short_lease_has_expired_by_the_servers_clock() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let second = Duration::from_secs(1);
    let mut claimed = claim(&store, 1).await;
    age(&server, LEASE, LEASE - second).await;
    assert_in_flight(&begin(&store, 1).await);
    assert!(!store.forget(&key(1)).await.unwrap());
    age(&server, LEASE, LEASE + second).await;
    let Ok(Begin::Abandoned(mut new_owner)) = begin(&store, 1).await else { panic!("the lease has expired") };
    // A renewal gives it the whole lease again, even if it changes nothing else.
    for lease in [LEASE, 2 * LEASE, 2 * LEASE] {
        claimed.renew(lease).await.unwrap();
        assert!(matches!(new_owner.renew(LEASE).await, Err(StoreError::Lost)));
        age(&server, lease, lease - second).await;
        assert_in_flight(&begin(&store, 1).await);
        assert!(matches!(new_owner.renew(LEASE).await, Err(StoreError::Lost)));
        age(&server, lease, lease + second).await;
        assert!(matches!(begin(&store, 1).await, Ok(Begin::Abandoned(_))));
    }
    // The owner was late, and no other owner took over.
    claimed.renew(LEASE).await.unwrap();
    assert!(!store.forget(&key(1)).await.unwrap());
    age(&server, LEASE, LEASE + second).await;
    assert!(store.forget(&key(1)).await.unwrap());
    assert!(matches!(claimed.complete(record("response"), TTL).await, Err(StoreError::Lost)));
}

#[tokio::test]
async fn an_owner_whose_renewal_is_unconfirmed_still_completes_and_releases() {
    let server = Redis::start().await;
    let store = store(&server).await;
    for end in ["complete", "release"] {
        let mut claimed = claim(&store, 1).await;
        // As if this one had been renewed with another lease, and the reply had been lost.
        let copy = claimed.try_clone().unwrap();
        claimed.renew(2 * LEASE).await.unwrap();
        match end {
            "complete" => copy.complete(record("response"), TTL).await.unwrap(),
            _ => copy.release().await.unwrap(),
        }
        match begin(&store, 1).await.unwrap() {
            Begin::Completed(found) if end == "complete" => assert_eq!(found, record("response")),
            Begin::Claimed(_) if end == "release" => {}
            other => panic!("{end}: {other:?}"),
        }
        store.forget(&key(1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_without_an_expiry_has_no_age_and_is_an_error() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let _claimed = claim(&store, 1).await;
    assert!(server.say(&format!("PERSIST {}", name(1))).await.starts_with(":1"));
    unreadable(begin(&store, 1).await);
    unreadable(store.forget(&key(1)).await);
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"));
}

/// An entry whose expiry was removed stays until it is forgotten: a record has no age.
#[tokio::test]
async fn a_record_without_an_expiry_is_a_record() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    claimed.complete(record("response"), TTL).await.unwrap();
    assert!(server.say(&format!("PERSIST {}", name(1))).await.starts_with(":1"));
    copy.complete(record("response"), TTL).await.unwrap();
    let left = server.say(&format!("PTTL {}", name(1))).await;
    assert!(left.starts_with(":-1\r\n"), "a repetition changes nothing: {left}");
    assert_eq!(recorded(&store, 1).await, record("response"));
    let found = store.inspect(&key(1)).await.unwrap().expect("the key is not free");
    assert!(matches!(&found.state, KeyState::Completed(found) if *found == record("response")), "{found:?}");
    assert_eq!(found.expires_at, None);
    assert!(store.forget(&key(1)).await.unwrap());
    claim(&store, 1).await;
}

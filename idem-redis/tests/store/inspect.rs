//! What an operator sees of a key.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use idem_redis::RedisStore;
use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, ExecutionInfo, KeyState, Store, StoreError, StoredEntry, SystemClock, Timestamp,
};
use idem_testkit::proxy::Proxy;
use idem_testkit::redis::Redis;

use crate::common::*;

fn info(endpoint: &str) -> ExecutionInfo {
    ExecutionInfo::from_bytes(&[&[1, 0][..], &[5; 8 + 8 + 4 + 8], endpoint.as_bytes()].concat()).unwrap()
}

async fn begin_with(store: &RedisStore, info: &ExecutionInfo) -> Begun {
    store.begin(&key(1), &fingerprint(1), &BeginOptions::new(LEASE, TTL).with_info(info.clone())).await
}

/// The state of the key, and that looking changed neither the value nor its end.
async fn inspected(server: &Redis, store: &RedisStore) -> StoredEntry {
    let end = async || server.say(&format!("PEXPIRETIME {}", name(1))).await;
    let dump = async || server.say(&format!("DUMP {}", name(1))).await;
    let before = (end().await, dump().await);
    // A write would be refused now.
    server.say("CONFIG SET min-replicas-to-write 1").await;
    let found = store.inspect(&key(1)).await.unwrap().expect("the key is not free");
    server.say("CONFIG SET min-replicas-to-write 0").await;
    assert_eq!(before, (end().await, dump().await));
    found
}

/// Server and test have the same clock.
fn assert_in(until: Option<Timestamp>, seconds: i128) {
    let now = i128::from(SystemClock::new().now().as_nanos());
    let left = i128::from(until.unwrap().as_nanos()) - now;
    let seconds = seconds * 1_000_000_000;
    assert!(left <= seconds && left > seconds - 10_000_000_000, "{left} ns are left, and not {seconds}");
}

#[tokio::test]
async fn a_claim_is_in_flight_and_then_abandoned_and_a_record_is_completed() {
    let server = Redis::start().await;
    let store = store(&server).await;
    assert!(store.inspect(&key(1)).await.unwrap().is_none());
    let Ok(Begin::Claimed(mut claimed)) = begin_with(&store, &info("POST /orders")).await else {
        panic!("the key is free");
    };
    for renewed in [false, true] {
        if renewed {
            claimed.renew(LEASE).await.unwrap();
        }
        let found = inspected(&server, &store).await;
        assert!(matches!(found.state, KeyState::InFlight(found) if found == fingerprint(1)), "{found:?}");
        assert_eq!(found.info, Some(info("POST /orders")));
        assert_in(found.lease_until, 30);
        assert_in(found.expires_at, 3630);
        // As if the owner had been gone for a minute.
        let left = (LEASE + TTL - Duration::from_secs(60)).as_millis();
        server.say(&format!("PEXPIRE {} {left}", name(1))).await;
        let found = inspected(&server, &store).await;
        assert!(matches!(found.state, KeyState::Abandoned(found) if found == fingerprint(1)), "{found:?}");
        assert_eq!(found.info, Some(info("POST /orders")));
        assert_in(found.lease_until, -30);
        assert_in(found.expires_at, 3570);
    }
    // The new owner has come from another endpoint.
    let Ok(Begin::Abandoned(mut new_owner)) = begin_with(&store, &info("PUT /orders")).await else {
        panic!("the lease has expired");
    };
    assert_eq!(inspected(&server, &store).await.info, Some(info("POST /orders")));
    new_owner.renew(LEASE).await.unwrap();
    assert_eq!(inspected(&server, &store).await.info, Some(info("PUT /orders")));

    new_owner.complete(record("response"), TTL).await.unwrap();
    let found = inspected(&server, &store).await;
    assert!(matches!(&found.state, KeyState::Completed(found) if *found == record("response")), "{found:?}");
    assert_eq!((found.lease_until, found.replays), (None, None));
    assert_in(found.expires_at, 3600);
}

#[tokio::test]
async fn what_cannot_be_read_or_asked_is_an_error() {
    let mut server = Redis::start().await;
    let store = store(&server).await;
    claim(&store, 2).await.complete(record("response"), TTL).await.unwrap();
    for write in [format!("SET {} other", name(1)), format!("COPY {} {} REPLACE", name(2), name(1))] {
        server.say(&write).await;
        let inspected = store.inspect(&key(1)).await;
        assert!(matches!(inspected, Err(StoreError::Unreadable(_))), "{write}: {inspected:?}");
    }
    server.kill();
    assert!(matches!(store.inspect(&key(1)).await, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn a_claim_is_revoked_once_and_an_abandoned_one_has_no_owner_to_lose() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    assert!(store.revoke(&key(1)).await.unwrap());
    assert!(!store.revoke(&key(1)).await.unwrap());
    assert!(matches!(claimed.release().await, Err(StoreError::Lost)));
}

#[tokio::test]
async fn unknown_outcomes_are_found_among_many_keys_page_by_page() {
    let server = Redis::start().await;
    let store = store(&server).await;
    drop(claim(&store, 1).await);
    // As if the owner had been gone for a minute.
    server.say(&format!("PEXPIRE {} {}", name(1), (TTL - Duration::from_secs(60)).as_millis())).await;
    let others: Vec<_> = (0..5000).map(|number| format!("other:{number} 1")).collect();
    server.say(&format!("MSET {}", others.join(" "))).await;
    let (mut found, mut pages, mut from) = (Vec::new(), 0, None);
    loop {
        let page = store.inspect_unknown(from.as_ref()).await.unwrap();
        found.extend(page.keys.into_iter().map(|(key, _)| key));
        pages += 1;
        assert!(pages < 100, "the pages do not end");
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    found.dedup();
    assert_eq!(found, [key(1)]);
    assert!(pages > 1, "5,000 keys are more than a page");
}

#[tokio::test]
async fn a_page_at_a_server_that_is_not_there_is_the_first_one() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let others: Vec<_> = (0..5000).map(|number| format!("other:{number} 1")).collect();
    server.say(&format!("MSET {}", others.join(" "))).await;
    let next = store.inspect_unknown(None).await.unwrap().next.expect("5,000 keys are more than a page");
    let invented = Bytes::from(std::str::from_utf8(&next).unwrap().replacen(" 0 ", " 1 ", 1));
    assert_ne!(invented, next);
    assert_eq!(store.inspect_unknown(Some(&invented)).await.unwrap().next, Some(next));
}

/// What happens after some of the pages hides none of the unknown outcomes.
async fn nothing_is_hidden_by(server: &mut Redis, store: &RedisStore, happens: impl AsyncFnOnce(&mut Redis)) {
    const CLAIMS: u8 = 100;
    for number in 0..CLAIMS {
        drop(claim(store, number).await);
        server.say(&format!("PEXPIRE {} {}", name(number), (TTL - Duration::from_secs(60)).as_millis())).await;
    }
    let others: Vec<_> = (0..5000).map(|number| format!("other:{number} 1")).collect();
    server.say(&format!("MSET {}", others.join(" "))).await;
    let (mut found, mut next) = (HashSet::new(), None);
    for _ in 0..5 {
        let page = store.inspect_unknown(next.as_ref()).await.unwrap();
        found.extend(page.keys.into_iter().map(|(key, _)| *key.as_bytes()));
        next = page.next;
    }
    assert!(found.len() < usize::from(CLAIMS) && next.is_some(), "there are more pages");
    happens(server).await;
    while next.is_some() {
        let page = store.inspect_unknown(next.as_ref()).await.unwrap();
        found.extend(page.keys.into_iter().map(|(key, _)| *key.as_bytes()));
        next = page.next;
    }
    assert_eq!(found.len(), usize::from(CLAIMS));
}

#[tokio::test]
async fn a_failover_between_two_pages_hides_no_unknown_outcome() {
    let mut primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = RedisStore::connect(format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap();
    nothing_is_hidden_by(&mut primary, &store, async |primary| {
        let size = primary.say("DBSIZE").await;
        until("the replica has all keys", async || replica.say("DBSIZE").await == size).await;
        primary.kill();
        replica.say("REPLICAOF NO ONE").await;
        proxy.redirect(replica.port());
        proxy.cut();
    })
    .await;
}

/// As after a failover, when the node that was demoted refuses to read.
#[tokio::test]
async fn a_key_that_cannot_be_looked_at_is_not_left_out() {
    let server = Redis::start().await;
    let store = RedisStore::connect(server.url()).await.unwrap();
    let short = BeginOptions::new(Duration::from_millis(50), TTL);
    drop(store.begin(&key(1), &fingerprint(1), &short).await.unwrap());
    until("it is listed", async || !store.inspect_unknown(None).await.unwrap().keys.is_empty()).await;
    server.say("ACL SETUSER default -getrange").await;
    let page = store.inspect_unknown(None).await;
    assert!(page.as_ref().map_or(true, |page| page.keys.len() == 1), "{page:?}");
}

#[tokio::test]
async fn a_restart_between_two_pages_hides_no_unknown_outcome() {
    let mut server = Redis::durable().await;
    let store = RedisStore::connect(server.url()).await.unwrap();
    nothing_is_hidden_by(&mut server, &store, Redis::restart).await;
}

//! What a step does when the network between store and server fails in the middle of it.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use idem_redis::RedisStore;
use idem_runtime::{Begin, BeginOptions, Claim, Idempotency, Store, StoreError};
use idem_testkit::proxy::{Direction, Fault};
use idem_testkit::redis::Redis;

use crate::common::*;

/// The server does the step, and then the connection breaks instead of its reply.
const REPLY_LOST: Fault = Fault::ResetAfter(0);

#[tokio::test]
async fn a_begin_whose_reply_is_lost_is_repeated_and_claims() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    let claimed = claim(&store, 1).await;
    assert_in_flight(&begin(&store, 1).await);
    claimed.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn every_other_step_whose_reply_is_lost_is_repeated_with_the_same_result() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let mut claimed = claim(&store, 1).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    claimed.renew(LEASE).await.unwrap();
    proxy.set(Direction::ToClient, REPLY_LOST);
    claimed.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    let released = claim(&store, 2).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    released.release().await.unwrap();
    claim(&store, 2).await;
}

#[tokio::test]
async fn a_forget_whose_reply_is_lost_reports_that_it_may_have_forgotten() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    for number in [1, 2] {
        claim(&store, number).await.complete(record("response"), TTL).await.unwrap();
    }
    // It reads first, which may be repeated safely.
    proxy.set(Direction::ToClient, REPLY_LOST);
    assert!(store.forget(&key(1)).await.unwrap());
    // The head of the record, and what is left to its key; at most three digits are missing from that.
    let head = 2 + 16 + 32 + 2 + 8 + record("response").tombstone().bytes().len();
    let looked = format!("*2\r\n${head}\r\n\r\n:3599999\r\n").len() + head;
    proxy.set(Direction::ToClient, Fault::ResetAfter(looked));
    assert!(unavailable(store.forget(&key(2)).await).contains("look again"));
    assert!(!store.forget(&key(2)).await.unwrap());
}

#[tokio::test]
async fn a_completion_that_times_out_is_repeated_by_the_copy_and_leaves_one_record() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    let said = unavailable(claimed.complete(record("first"), TTL).await);
    assert!(said.contains("it is unknown whether the step took effect"), "{said}");
    proxy.heal();
    copy.complete(record("again"), TTL).await.unwrap();
    // The first one remains: a client may have seen it.
    assert_eq!(recorded(&store, 1).await, record("first"));
}

#[tokio::test]
async fn a_release_that_times_out_is_repeated_by_the_copy() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(claimed.release().await);
    proxy.heal();
    copy.release().await.unwrap();
    assert!(matches!(claim(&store, 1).await.release().await, Ok(())));
}

#[tokio::test]
async fn a_copy_releases_what_was_released_and_learns_that_a_claim_was_lost() {
    let server = Redis::start().await;
    let store = crate::common::store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    claimed.release().await.unwrap();
    copy.release().await.unwrap();
    let claimed = claim(&store, 2).await;
    let copy = claimed.try_clone().unwrap();
    server.say(&format!("DEL {}", name(2))).await;
    for claim in [claimed, copy] {
        let released = claim.release().await;
        assert!(matches!(released, Err(StoreError::Lost)), "{released:?}");
    }
}

#[tokio::test]
async fn a_release_that_took_effect_is_repeated_without_an_error_if_another_owner_has_claimed_since() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let near = crate::common::store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(claimed.release().await);
    let others = claim(&near, 1).await;
    proxy.heal();
    copy.release().await.unwrap();
    others.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&near, 1).await, record("response"));
}

#[tokio::test]
async fn an_unconfirmed_claim_is_released_long_before_its_lease_expires() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(begin(&store, 1).await);
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"), "the server granted the claim");
    proxy.heal();
    claim_in_time(&store, 1).await.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn the_claim_of_a_dropped_begin_is_released() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, Fault::Hold);
    {
        let mut begin = pin!(begin(&store, 1));
        let half_way = poll_fn(|cx| Poll::Ready(begin.as_mut().poll(cx).is_pending())).await;
        assert!(half_way);
        tokio::select! {
            _ = begin => panic!("its reply is held"),
            () = proxy.seen(Direction::ToClient) => {}
        }
    }
    proxy.heal();
    claim_in_time(&store, 1).await;
}

#[tokio::test]
async fn a_drain_waits_until_an_unconfirmed_claim_is_released() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    let idempotency = Idempotency::new(store.clone());
    idempotency.drain().await;
    proxy.set(Direction::ToClient, Fault::Hold);
    tokio::select! {
        _ = begin(&store, 1) => panic!("its reply is held"),
        () = proxy.seen(Direction::ToClient) => {}
    }
    // The release of the claim whose future was dropped is held as well, until the server was asked.
    proxy.set(Direction::ToServer, Fault::Hold);
    let standing = async || server.say(&format!("EXISTS {}", name(1))).await;
    let drained = async {
        idempotency.drain().await;
        standing().await
    };
    let healed = async {
        assert!(standing().await.starts_with(":1"), "the server granted the claim");
        proxy.heal();
    };
    let (found, ()) = tokio::join!(drained, healed);
    assert!(found.starts_with(":0"), "{found}");
}

#[tokio::test]
async fn without_its_release_a_dropped_claim_is_abandoned_when_its_lease_expires() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let short = Duration::from_millis(100);
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(store.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await);
    // With the store go its tasks, as with its process.
    drop(store);
    let other = RedisStore::connect(server.url()).await.unwrap();
    until("the lease has expired", async || matches!(begin(&other, 1).await, Ok(Begin::Abandoned(_)))).await;
}

#[tokio::test]
async fn without_a_network_a_step_is_an_error_in_time_and_the_store_reconnects() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let mut claimed = claim(&store, 1).await;
    proxy.black_hole();
    let start = Instant::now();
    unavailable(begin(&store, 2).await);
    unavailable(claimed.renew(LEASE).await);
    unavailable(store.forget(&key(3)).await);
    assert!(start.elapsed() < 3 * TIMEOUT + Duration::from_secs(2), "{:?}", start.elapsed());
    proxy.refuse();
    let start = Instant::now();
    unavailable(begin(&store, 4).await);
    assert!(start.elapsed() < TIMEOUT + Duration::from_secs(1), "a refused connection is no reason to wait");
    proxy.heal();
    claimed.renew(LEASE).await.unwrap();
    assert_in_flight(&begin(&store, 1).await);
    claim_in_time(&store, 2).await;
    claim_in_time(&store, 4).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_while_many_steps_are_under_way_costs_none_of_them() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    for round in 0..5 {
        // At another byte of the replies each time.
        proxy.set(Direction::ToClient, Fault::ResetAfter(usize::from(round) * 3));
        let steps: Vec<_> = (0..20u8)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move { begin(&store, round * 20 + number).await })
            })
            .collect();
        for step in steps {
            let begun = step.await.unwrap();
            assert!(matches!(begun, Ok(Begin::Claimed(_))), "{begun:?}");
        }
    }
    for number in 0..100 {
        assert_in_flight(&begin(&store, number).await);
    }
}

#[tokio::test]
async fn after_a_demotion_the_step_goes_to_the_new_primary() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let (store, proxy) = through_proxy(&old).await;
    let stranded = claim(&store, 1).await;
    proxy.redirect(new.port());
    old.say(&format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    // The connection to the old primary is as good as ever, and so is refused for good.
    claim(&store, 2).await.complete(record("response"), TTL).await.unwrap();
    assert!(new.say(&format!("EXISTS {}", name(2))).await.starts_with(":1"));
    // What the new primary never had is lost, and its owner learns of it.
    assert!(matches!(stranded.complete(record("response"), TTL).await, Err(StoreError::Lost)));
}

/// Such as one that copies the new primary's data, and meanwhile replies with what it had.
#[tokio::test]
async fn an_old_primary_does_not_say_that_the_outcome_of_a_renewed_claim_is_unknown() {
    let old = Redis::start().await;
    let new = old.replica().await;
    let ((owners, owners_way), (store, way)) = (through_proxy(&old).await, through_proxy(&old).await);
    let short = BeginOptions::new(Duration::from_millis(50), TTL);
    let Ok(Begin::Claimed(claimed)) = owners.begin(&key(1), &fingerprint(1), &short).await else {
        panic!("the key is free");
    };
    until("the new primary has the claim", async || new.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"))
        .await;
    new.say("REPLICAOF NO ONE").await;
    old.say("REPLICAOF 127.0.0.1 1").await;
    owners_way.redirect(new.port());
    claimed.complete(record("response"), TTL).await.unwrap();
    until("its lease has expired at the old one", async || {
        let left = old.say(&format!("PTTL {}", name(1))).await;
        left[1..].lines().next().unwrap().parse::<u128>().unwrap() < TTL.as_millis()
    })
    .await;
    // The connection to the old one is as good as ever.
    way.redirect(new.port());
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn a_claim_whose_reply_was_lost_is_released_if_no_second_try_is_possible() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    // The server of the next connection is refused.
    server.say("CONFIG SET maxmemory-policy allkeys-lru").await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    let said = unavailable(begin(&store, 1).await);
    assert!(said.contains("maxmemory-policy"), "{said}");
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"), "the server granted the claim");
    server.say("CONFIG SET maxmemory-policy noeviction").await;
    store.drained().await;
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":0"));
    claim(&store, 1).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_claim_whose_key_has_a_value_of_another_type() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    server.say(&format!("RPUSH {} 1", name(1))).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    unreadable(begin(&store, 1).await);
    within("the drain", store.drained()).await;
}

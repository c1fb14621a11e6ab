//! What a step does when the network between store and server fails in the middle of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

#[allow(unreachable_pub, reason = "a module of each test")]
mod common;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use common::*;
use idem_redis::RedisStore;
use idem_runtime::{Begin, Claim, Store, StoreError, Terms};
use idem_servers::proxy::{Direction, Fault};
use idem_servers::redis::Redis;

/// The server does the step, and then the connection breaks instead of its answer.
const ANSWER_LOST: Fault = Fault::ResetAfter(0);

#[tokio::test]
async fn a_begin_whose_answer_is_lost_is_repeated_and_claims() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, ANSWER_LOST);
    let claimed = claim(&store, 1).await;
    assert_in_flight(&begin(&store, 1).await);
    claimed.complete(record("answer"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("answer"));
}

#[tokio::test]
async fn every_other_step_whose_answer_is_lost_is_repeated_and_gives_the_same_answer() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let mut claimed = claim(&store, 1).await;
    proxy.set(Direction::ToClient, ANSWER_LOST);
    claimed.renew(LEASE).await.unwrap();
    proxy.set(Direction::ToClient, ANSWER_LOST);
    claimed.complete(record("answer"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("answer"));
    let released = claim(&store, 2).await;
    proxy.set(Direction::ToClient, ANSWER_LOST);
    released.release().await.unwrap();
    claim(&store, 2).await;
}

#[tokio::test]
async fn a_forget_whose_answer_is_lost_does_not_know_what_the_first_try_found_and_says_so() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    for number in [1, 2] {
        claim(&store, number).await.complete(record("answer"), TTL).await.unwrap();
    }
    // It looks first. That may be repeated without a doubt.
    proxy.set(Direction::ToClient, ANSWER_LOST);
    assert!(store.forget(&key(1)).await.unwrap());
    let length = server.say(&format!("STRLEN {}", name(2))).await;
    let length: usize = length.lines().next().unwrap()[1..].trim().parse().unwrap();
    // The value, what is left to it, and the time; at most three digits are missing from that.
    let looked = format!("*3\r\n${length}\r\n\r\n:3599999\r\n*2\r\n$10\r\n1800000000\r\n$6\r\n123456\r\n").len();
    proxy.set(Direction::ToClient, Fault::ResetAfter(looked + length));
    assert!(unavailable(store.forget(&key(2)).await).contains("look again"));
    assert!(!store.forget(&key(2)).await.unwrap());
}

#[tokio::test]
async fn a_completion_that_times_out_is_repeated_by_the_twin_and_leaves_one_record() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    let twin = claimed.twin().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    let said = unavailable(claimed.complete(record("first"), TTL).await);
    assert!(said.contains("whether the step took effect is unknown"), "{said}");
    proxy.heal();
    twin.complete(record("again"), TTL).await.unwrap();
    // The first one stands: somebody may have seen it.
    assert_eq!(recorded(&store, 1).await, record("first"));
}

#[tokio::test]
async fn a_release_that_times_out_is_repeated_by_the_twin() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    let twin = claimed.twin().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(claimed.release().await);
    proxy.heal();
    twin.release().await.unwrap();
    assert!(matches!(claim(&store, 1).await.release().await, Ok(())));
}

#[tokio::test]
async fn a_release_that_took_effect_is_repeated_without_a_complaint_where_somebody_else_has_claimed_since() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let near = common::store(&server).await;
    let claimed = claim(&store, 1).await;
    let twin = claimed.twin().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(claimed.release().await);
    let others = claim(&near, 1).await;
    proxy.heal();
    twin.release().await.unwrap();
    others.complete(record("answer"), TTL).await.unwrap();
    assert_eq!(recorded(&near, 1).await, record("answer"));
}

#[tokio::test]
async fn a_claim_whose_grant_was_never_heard_of_is_given_back_long_before_its_lease_is_over() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(begin(&store, 1).await);
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"), "the server granted the claim");
    proxy.heal();
    claim_in_time(&store, 1).await.complete(record("answer"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("answer"));
}

#[tokio::test]
async fn a_claim_of_a_begin_that_was_dropped_is_given_back() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, Fault::Hold);
    {
        let mut begin = pin!(begin(&store, 1));
        let half_way = poll_fn(|cx| Poll::Ready(begin.as_mut().poll(cx).is_pending())).await;
        assert!(half_way);
        tokio::select! {
            _ = begin => panic!("its answer is held back"),
            () = proxy.seen(Direction::ToClient) => {}
        }
    }
    proxy.heal();
    claim_in_time(&store, 1).await;
}

#[tokio::test]
async fn without_the_giving_back_a_dropped_claim_is_abandoned_when_its_lease_is_over() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let short = Duration::from_millis(100);
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(store.begin_on_terms(&key(1), &fingerprint(1), &Terms::new(short, TTL)).await);
    // With the store go its tasks, as with its process.
    drop(store);
    let other = RedisStore::connect(server.url()).await.unwrap();
    until("the lease is over", async || matches!(begin(&other, 1).await, Ok(Begin::Abandoned(_)))).await;
}

#[tokio::test]
async fn a_network_that_is_gone_is_an_error_in_time_and_comes_back_by_itself() {
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
        // At another place of the answers each time.
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
    claim(&store, 2).await.complete(record("answer"), TTL).await.unwrap();
    assert!(new.say(&format!("EXISTS {}", name(2))).await.starts_with(":1"));
    // What the new primary never had is lost, and its owner learns of it.
    assert!(matches!(stranded.complete(record("answer"), TTL).await, Err(StoreError::Lost)));
}

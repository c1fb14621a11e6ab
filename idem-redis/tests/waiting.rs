//! Waiting for the end of another owner's claim.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

#[allow(unreachable_pub, reason = "a module of each test")]
mod common;

use std::time::{Duration, Instant};

use common::*;
use idem_redis::RedisStore;
use idem_runtime::{Begin, BeginOptions, Claim, Store};
use idem_testkit::redis::Redis;
use tokio::task::JoinSet;

/// Waits as the engine does.
async fn wait(store: RedisStore, number: u8) -> Begin<idem_redis::RedisClaim> {
    loop {
        match begin(&store, number).await.unwrap() {
            Begin::InFlight(_) => store.ended(&key(number)).await,
            ended => return ended,
        }
    }
}

async fn subscribers(server: &Redis, number: u8) -> bool {
    server.say(&format!("PUBSUB NUMSUB {}:ended", name(number))).await.contains(":1\r\n")
}

#[tokio::test]
async fn who_waits_hears_of_the_end_at_once_and_all_share_one_connection() {
    let server = Redis::start().await;
    let (owner, waiter) = (store(&server).await, store(&server).await);
    let mut fastest = Duration::MAX;
    for round in 0..3 {
        let claims = [claim(&owner, round * 2).await, claim(&owner, round * 2 + 1).await];
        let mut waiters = JoinSet::new();
        for number in 0..20 {
            waiters.spawn(wait(waiter.clone(), round * 2 + number % 2));
        }
        until("everybody is subscribed", async || {
            subscribers(&server, round * 2).await && subscribers(&server, round * 2 + 1).await
        })
        .await;
        let subscribed = server.say("CLIENT LIST TYPE pubsub").await;
        assert_eq!(subscribed.matches(" addr=127").count(), 1, "{subscribed}");
        // By now those who wait look only every half second.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let start = Instant::now();
        let [one, other] = claims;
        one.complete(record("answer"), TTL).await.unwrap();
        other.release().await.unwrap();
        let mut claimed = 0;
        while let Some(ended) = waiters.join_next().await {
            if let Begin::Claimed(claim) = ended.unwrap() {
                claimed += 1;
                claim.complete(record("answer"), TTL).await.unwrap();
            }
        }
        assert_eq!(claimed, 1, "of all who waited for a released key one claims it");
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(150), "a message cuts the poll short, but it took {fastest:?}");
}

#[tokio::test]
async fn a_subscription_goes_when_nobody_waits_and_comes_again() {
    let server = Redis::start().await;
    let store = store(&server).await;
    for _ in 0..2 {
        let claimed = claim(&store, 1).await;
        let waiter = tokio::spawn(wait(store.clone(), 1));
        until("the waiter is subscribed", async || subscribers(&server, 1).await).await;
        // A client that hangs up.
        waiter.abort();
        until("the subscription is gone", async || !subscribers(&server, 1).await).await;
        claimed.release().await.unwrap();
    }
    let claimed = claim(&store, 1).await;
    let waiter = tokio::spawn(wait(store.clone(), 1));
    until("the waiter is subscribed", async || subscribers(&server, 1).await).await;
    waiter.abort();
    drop((waiter.await, claimed, store));
    until("the connections end with the store", async || {
        server.say("CLIENT LIST").await.matches(" addr=127").count() == 1
    })
    .await;
}

#[tokio::test]
async fn a_subscription_that_is_cut_comes_again() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    let waiter = tokio::spawn(wait(store.clone(), 1));
    until("the waiter is subscribed", async || subscribers(&server, 1).await).await;
    server.say("CLIENT KILL TYPE pubsub").await;
    until("the waiter is subscribed again", async || subscribers(&server, 1).await).await;
    claimed.complete(record("answer"), TTL).await.unwrap();
    assert!(matches!(waiter.await.unwrap(), Begin::Completed(_)));
}

#[tokio::test]
async fn without_the_right_to_publish_and_to_subscribe_those_who_wait_look_for_themselves() {
    let server = Redis::start().await;
    server.say("ACL SETUSER default resetchannels").await;
    let (owner, waiter) = (store(&server).await, store(&server).await);
    let claims = [claim(&owner, 1).await, claim(&owner, 2).await];
    let waiters = [1, 2].map(|number| tokio::spawn(wait(waiter.clone(), number)));
    let [one, other] = claims;
    one.complete(record("answer"), TTL).await.unwrap();
    other.release().await.unwrap();
    let [one, other] = waiters;
    assert!(matches!(one.await.unwrap(), Begin::Completed(found) if found == record("answer")));
    assert!(matches!(other.await.unwrap(), Begin::Claimed(_)));
}

#[tokio::test]
async fn who_waits_hears_of_a_lease_that_is_over() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let lease = Duration::from_millis(200);
    drop(store.begin(&key(1), &fingerprint(1), &BeginOptions::new(lease, TTL)).await.unwrap());
    assert!(matches!(wait(store, 1).await, Begin::Abandoned(_)));
}

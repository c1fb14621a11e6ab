//! Waiting for the end of another owner's claim.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use idem_runtime::{Begin, BeginOptions, Claim, Store};
use idem_testkit::redis::Redis;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::*;

async fn subscribers(server: &Redis, number: u8) -> bool {
    server.say(&format!("PUBSUB NUMSUB {}:ended", name(number))).await.contains(":1\r\n")
}

#[tokio::test]
async fn waiters_share_one_connection_whose_messages_wake_them() {
    let server = Redis::start().await;
    let (owner, waiter) = (store(&server).await, store(&server).await);
    let [completed, released] = [claim(&owner, 1).await, claim(&owner, 2).await];
    let (mut waiters, waiting) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    // Of several who wait for a released key, one finds another claim, which takes the right that is revoked below.
    for _ in 0..20 {
        waiters.spawn(wait(waiter.clone(), 1, Arc::clone(&waiting)));
    }
    until("the first key is subscribed to", async || subscribers(&server, 1).await).await;
    waiters.spawn(wait(waiter.clone(), 2, Arc::clone(&waiting)));
    until("all wait", async || waiting.load(SeqCst) == 21).await;
    until("both keys are subscribed to", async || subscribers(&server, 1).await && subscribers(&server, 2).await).await;
    let subscribed = server.say("CLIENT LIST TYPE pubsub").await;
    assert_eq!(subscribed.matches(" addr=127").count(), 1, "{subscribed}");
    // From now on a poll finds nothing out.
    server.say("ACL SETUSER default -pttl").await;
    completed.complete(record("response"), TTL).await.unwrap();
    released.release().await.unwrap();
    let mut claimed = 0;
    while let Some(ended) = within("a message", waiters.join_next()).await {
        match ended.unwrap() {
            Begin::Completed(found) => assert_eq!(found, record("response")),
            Begin::Claimed(_) => claimed += 1,
            ended => panic!("both claims have ended, but `begin` gave {ended:?}"),
        }
    }
    assert_eq!(claimed, 1, "the released key");
}

#[tokio::test]
async fn of_all_waiters_for_a_released_key_one_claims_it() {
    let server = Redis::start().await;
    let (owner, waiter) = (store(&server).await, store(&server).await);
    let released = claim(&owner, 1).await;
    let (mut waiters, waiting) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    for _ in 0..20 {
        waiters.spawn(wait(waiter.clone(), 1, Arc::clone(&waiting)));
    }
    until("all wait", async || waiting.load(SeqCst) == 20).await;
    released.release().await.unwrap();
    let mut claimed = 0;
    while let Some(ended) = within("the record", waiters.join_next()).await {
        if let Begin::Claimed(claim) = ended.unwrap() {
            claimed += 1;
            claim.complete(record("response"), TTL).await.unwrap();
        }
    }
    assert_eq!(claimed, 1);
}

#[tokio::test]
async fn a_subscription_ends_without_waiters_and_begins_again() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let kept = claim(&store, 2).await;
    let other = tokio::spawn(wait(store.clone(), 2, Arc::default()));
    for _ in 0..2 {
        let claimed = claim(&store, 1).await;
        let waiter = tokio::spawn(wait(store.clone(), 1, Arc::default()));
        until("the waiter is subscribed", async || subscribers(&server, 1).await).await;
        // A client that hangs up.
        waiter.abort();
        until("the subscription is gone", async || !subscribers(&server, 1).await).await;
        claimed.release().await.unwrap();
    }
    assert!(subscribers(&server, 2).await, "the other waiter still waits");
    other.abort();
    drop((other.await, kept));
    let claimed = claim(&store, 1).await;
    let waiter = tokio::spawn(wait(store.clone(), 1, Arc::default()));
    until("the waiter is subscribed", async || subscribers(&server, 1).await).await;
    waiter.abort();
    drop((waiter.await, claimed, store));
    until("the connections end with the store", async || {
        server.say("CLIENT LIST").await.matches(" addr=127").count() == 1
    })
    .await;
}

#[tokio::test]
async fn a_subscription_that_is_cut_is_made_again() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    let waiter = tokio::spawn(wait(store.clone(), 1, Arc::default()));
    until("the waiter is subscribed", async || subscribers(&server, 1).await).await;
    server.say("CLIENT KILL TYPE pubsub").await;
    until("the waiter is subscribed again", async || subscribers(&server, 1).await).await;
    claimed.complete(record("response"), TTL).await.unwrap();
    assert!(matches!(waiter.await.unwrap(), Begin::Completed(_)));
}

#[tokio::test]
async fn without_the_rights_to_publish_and_subscribe_waiters_poll() {
    let server = Redis::start().await;
    server.say("ACL SETUSER default resetchannels").await;
    let (owner, waiter) = (store(&server).await, store(&server).await);
    let claims = [claim(&owner, 1).await, claim(&owner, 2).await];
    let waiters = [1, 2].map(|number| tokio::spawn(wait(waiter.clone(), number, Arc::default())));
    let [one, other] = claims;
    one.complete(record("response"), TTL).await.unwrap();
    other.release().await.unwrap();
    let [one, other] = waiters;
    assert!(matches!(one.await.unwrap(), Begin::Completed(found) if found == record("response")));
    assert!(matches!(other.await.unwrap(), Begin::Claimed(_)));
}

/// As that of a test which has ended, and keeps its runtime.
#[tokio::test]
async fn a_waiter_does_not_depend_on_the_runtime_of_the_one_that_came_first() {
    let server = Redis::start().await;
    let (owner, waiter) = (store(&server).await, store(&server).await);
    let claimed = claim(&owner, 1).await;
    let first = waiter.clone();
    let idle = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let waits = async { timeout(Duration::from_millis(50), first.ended(&key(1))).await };
        runtime.block_on(waits).unwrap_err();
        runtime
    });
    let idle = idle.await.unwrap();
    let waiting = Arc::<AtomicUsize>::default();
    let waits = tokio::spawn(wait(waiter, 1, Arc::clone(&waiting)));
    until("it waits", async || waiting.load(SeqCst) == 1).await;
    claimed.complete(record("response"), TTL).await.unwrap();
    let ended = within("the record", waits).await.unwrap();
    assert!(matches!(ended, Begin::Completed(found) if found == record("response")));
    idle.shutdown_background();
}

#[tokio::test]
async fn a_waiter_is_woken_when_the_lease_has_expired() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let lease = Duration::from_millis(200);
    drop(store.begin(&key(1), &fingerprint(1), &BeginOptions::new(lease, TTL)).await.unwrap());
    assert!(matches!(wait(store, 1, Arc::default()).await, Begin::Abandoned(_)));
}

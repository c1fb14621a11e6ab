//! What replicas add, and what a failover costs with and without them.

use std::time::{Duration, Instant};

use idem_redis::{Durability, RedisStore};
use idem_runtime::{BeginOptions, Claim, Store, StoreError};
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::redis::Redis;
use tokio::runtime::Builder;

use crate::common::*;

const WITHIN: Duration = Duration::from_millis(300);

/// A store that goes wherever the proxy leads.
async fn replicated(proxy: &Proxy) -> RedisStore {
    RedisStore::builder(format!("redis://127.0.0.1:{}", proxy.port()))
        .timeout(TIMEOUT)
        .durability(Durability::Replicas { count: 1, within: WITHIN })
        .connect()
        .await
        .unwrap()
}

async fn exists(server: &Redis, number: u8) -> bool {
    server.say(&format!("EXISTS {}", name(number))).await.starts_with(":1")
}

/// As an operator or a sentinel does it.
async fn fail_over(mut old: Redis, new: &Redis, proxy: &Proxy) {
    old.kill();
    new.say("REPLICAOF NO ONE").await;
    proxy.redirect(new.port());
    proxy.cut();
}

#[tokio::test]
async fn what_a_replica_has_survives_the_failover_to_it() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = replicated(&proxy).await;
    let running = claim_in_time(&store, 1).await;
    claim_in_time(&store, 2).await.complete(record("response"), TTL).await.unwrap();
    fail_over(primary, &replica, &proxy).await;
    // The new primary has no replica yet, and records are replayed anyway.
    until("the new primary replies", async || begin(&store, 1).await.is_ok()).await;
    let start = Instant::now();
    assert_in_flight(&begin(&store, 1).await);
    assert_eq!(recorded(&store, 2).await, record("response"));
    assert!(start.elapsed() < WITHIN, "what writes nothing waits for no replica");
    let said = unavailable(begin(&store, 3).await);
    assert!(said.contains("0 of 1 replicas"), "{said}");
    // The owner of the claim gets its record in as soon as there is a second copy.
    let copy = running.try_clone().unwrap();
    unavailable(running.complete(record("late response"), TTL).await);
    let second = replica.replica().await;
    // As the engine does. A replica may take its time on a busy machine.
    until("the record is in both", async || {
        copy.try_clone().unwrap().complete(record("late response"), TTL).await.is_ok()
    })
    .await;
    assert!(exists(&second, 1).await);
    assert_eq!(recorded(&store, 1).await, record("late response"));
}

#[tokio::test]
async fn without_a_replica_in_time_no_handler_may_run_and_the_key_stays_free() {
    let primary = Redis::start().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = replicated(&proxy).await;
    let said = unavailable(begin(&store, 1).await);
    assert!(said.contains("0 of 1 replicas"), "{said}");
    assert!(!exists(&primary, 1).await, "the claim was released");
    let replica = primary.replica().await;
    let claimed = claim_in_time(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    replica.stall();
    unavailable(claimed.complete(record("response"), TTL).await);
    // Repeated on another connection, which has not written anything that the server could wait for.
    proxy.cut();
    unavailable(copy.try_clone().unwrap().complete(record("response"), TTL).await);
    replica.resume();
    until("the record is in both", async || copy.try_clone().unwrap().complete(record("response"), TTL).await.is_ok())
        .await;
    assert!(replica.say(&format!("GETRANGE {} 0 1", name(1))).await.contains("\u{1}R"));
}

#[tokio::test]
async fn after_a_demotion_the_replicas_of_the_new_primary_are_waited_for() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::to(old.port()).await;
    let store = replicated(&proxy).await;
    unavailable(begin(&store, 1).await);
    let _replica = new.replica().await;
    proxy.redirect(new.port());
    old.say(&format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    until("the old primary is up to date", async || old.say("INFO replication").await.contains("link_status:up")).await;
    claim_in_time(&store, 2).await;
}

#[tokio::test]
async fn a_claim_that_is_found_again_after_a_lost_reply_must_be_in_the_replica_too() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = replicated(&proxy).await;
    claim_in_time(&store, 1).await;
    replica.stall();
    proxy.set(Direction::ToClient, Fault::ResetAfter(0));
    // The new connection has written nothing before, and WAIT waits for what its own connection wrote.
    let said = unavailable(begin(&store, 2).await);
    assert!(said.contains("0 of 1 replicas"), "{said}");
    assert!(!exists(&primary, 2).await, "the claim was released");
    replica.resume();
    proxy.set(Direction::ToClient, Fault::ResetAfter(0));
    claim_in_time(&store, 2).await;
}

#[tokio::test]
async fn a_takeover_or_a_revocation_that_no_replica_has_is_refused_too() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = replicated(&proxy).await;
    let short = Duration::from_millis(50);
    drop(store.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await.unwrap());
    let mut new_owner = abandoned(&store).await;
    replica.stall();
    let said = unavailable(new_owner.renew(LEASE).await);
    assert!(said.contains("replicas"), "{said}");
    replica.resume();
    until("the claim is in both", async || new_owner.renew(LEASE).await.is_ok()).await;
    // From then on a renewal waits for no replica.
    replica.stall();
    new_owner.renew(LEASE).await.unwrap();
    // After a failover the claim would have its owner back.
    let said = unavailable(store.revoke(&key(1)).await);
    assert!(said.contains("replicas"), "{said}");
    replica.resume();
}

#[tokio::test]
async fn a_begin_that_is_dropped_while_it_waits_for_a_replica_leaves_no_claim() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let durability = Durability::Replicas { count: 1, within: TTL };
    let store = RedisStore::builder(primary.url()).durability(durability).connect().await.unwrap();
    replica.stall();
    let begins = store.clone();
    let waits = tokio::spawn(async move { begins.begin(&key(1), &fingerprint(1), &BeginOptions::new(TTL, TTL)).await });
    until("it waits", async || primary.say("INFO clients").await.contains("blocked_clients:1")).await;
    assert!(exists(&primary, 1).await);
    waits.abort();
    until("the claim is released", async || !exists(&primary, 1).await).await;
    replica.resume();
}

/// The limit that the front page states, and what `Replicas` does about it.
#[tokio::test]
async fn a_failover_to_a_replica_that_lacks_the_claim_lets_another_one_claim() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let careful = replicated(&proxy).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let careless = RedisStore::builder(url).timeout(TIMEOUT).connect().await.unwrap();
    // A partition: the replica hears nothing from its primary any more.
    replica.say("REPLICAOF 127.0.0.1 1").await;
    until("the primary has noticed", async || primary.say("INFO replication").await.contains("connected_slaves:0"))
        .await;
    unavailable(begin(&careful, 1).await);
    let acknowledged = claim(&careless, 2).await;

    fail_over(primary, &replica, &proxy).await;
    // With `None` the acknowledged claim is lost, and a second handler may run while the first one does.
    claim_in_time(&careless, 2).await;
    assert!(matches!(acknowledged.complete(record("response"), TTL).await, Err(StoreError::Lost)));
    // With `Replicas` there was no claim to lose.
    assert!(!exists(&replica, 1).await);
}

/// Of many steps that wait for a replica, none makes another one wait longer than it waits itself.
#[tokio::test]
async fn steps_that_wait_for_a_dead_replica_wait_together_and_stop_no_others() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = replicated(&proxy).await;
    let mut running = claim_in_time(&store, 100).await;
    replica.stall();
    let start = Instant::now();
    let steps: Vec<_> = (0..20u8)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { begin(&store, number).await })
        })
        .collect();
    until("a step waits for the replica", async || primary.say("INFO clients").await.contains("blocked_clients:1"))
        .await;
    let renewed = Instant::now();
    running.renew(LEASE).await.unwrap();
    assert_in_flight(&begin(&store, 100).await);
    assert!(renewed.elapsed() < WITHIN, "what needs no replica took {:?}", renewed.elapsed());
    for step in steps {
        let said = unavailable(step.await.unwrap());
        assert!(said.contains("0 of 1 replicas"), "{said}");
    }
    // One after the other they would take twenty times as long.
    assert!(start.elapsed() < 6 * WITHIN, "{:?}", start.elapsed());
    replica.resume();
    for number in 0..20 {
        claim_in_time(&store, number).await;
    }
}

/// As if one connection broke after a host name had moved to another primary, while the old one lives on. The one that is asked whether it
/// has the claim has nothing under its key, or what another owner left.
#[tokio::test]
async fn two_connections_that_lead_to_two_primaries_are_both_replaced() {
    for (broken, is_taken) in [("evalsha", false), ("evalsha", true), ("wait", false), ("wait", true)] {
        let (old, new) = (Redis::start().await, Redis::start().await);
        let (_old_replica, _new_replica) = (old.replica().await, new.replica().await);
        let proxy = Proxy::to(old.port()).await;
        let store = replicated(&proxy).await;
        drop(claim_in_time(&store, 1).await);
        proxy.redirect(new.port());
        let clients = old.say("CLIENT LIST").await;
        let client = clients.lines().find(|client| client.contains(&format!(" cmd={broken} "))).expect(broken);
        let id = client.split_once("id=").unwrap().1.split(' ').next().unwrap();
        assert!(old.say(&format!("CLIENT KILL ID {id}")).await.starts_with(":1"));
        let asked = if broken == "wait" { &new } else { &old };
        if is_taken {
            asked.say(&format!("SET {} other", name(2))).await;
        }
        unavailable(begin(&store, 2).await);
        asked.say(&format!("DEL {}", name(2))).await;
        claim_in_time(&store, 3).await;
        assert!(exists(&new, 3).await && !exists(&new, 2).await, "{broken}");
    }
}

#[tokio::test]
async fn a_record_without_an_expiry_is_waited_for_in_the_replica_and_stays() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let proxy = Proxy::to(primary.port()).await;
    let store = replicated(&proxy).await;
    let claimed = claim_in_time(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    claimed.complete(record("response"), TTL).await.unwrap();
    assert!(primary.say(&format!("PERSIST {}", name(1))).await.starts_with(":1"));
    replica.stall();
    unavailable(copy.try_clone().unwrap().complete(record("response"), TTL).await);
    replica.resume();
    until("the record is in both", async || copy.try_clone().unwrap().complete(record("response"), TTL).await.is_ok())
        .await;
    assert!(primary.say(&format!("PTTL {}", name(1))).await.starts_with(":-1\r\n"));
    assert_eq!(recorded(&store, 1).await, record("response"));
}

/// Such as one that is given a future now and then, and is kept.
#[test]
fn a_runtime_that_is_not_driven_keeps_no_other_one_waiting_for_replicas() {
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let (_primary, _replica, store) = first.block_on(async {
        let primary = Redis::start().await;
        let replica = primary.replica().await;
        let durability = Durability::Replicas { count: 1, within: WITHIN };
        let store = RedisStore::builder(primary.url()).timeout(TIMEOUT).durability(durability).connect().await.unwrap();
        claim_in_time(&store, 1).await;
        (primary, replica, store)
    });
    second.block_on(async {
        claim_in_time(&store, 2).await.complete(record("response"), TTL).await.unwrap();
        assert_eq!(recorded(&store, 2).await, record("response"));
    });
}

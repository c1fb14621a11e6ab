//! The pages of unknown outcomes of a cluster whose keys change their nodes between two of them.

use std::collections::HashSet;
use std::time::Duration;

use idem_redis::RedisStore;
use idem_runtime::{Begin, BeginOptions, Store};
use idem_testkit::redis::Redis;
use idem_testkit::redis_cluster::{RedisCluster, id, ok};

use crate::cluster::{builder, owner};
use crate::common::*;

#[tokio::test]
async fn a_failover_between_two_pages_hides_no_unknown_outcome() {
    let by_name = |node: &Redis| format!("127.0.0.1:{}", node.port());
    let (mut cluster, replica) = loop {
        let mut cluster = RedisCluster::start().await;
        cluster.nodes.sort_by_key(by_name);
        let replica = cluster.replica(&cluster.nodes[2]).await;
        // In the order of the pages it comes before the one that it takes over from.
        if by_name(&replica) < by_name(&cluster.nodes[2]) {
            break (cluster, replica);
        }
    };
    let store = builder(&cluster).connect().await.unwrap();
    abandon_twenty(&store).await;
    let size = cluster.nodes[2].say("DBSIZE").await;
    until("the replica has the claims", async || replica.say("DBSIZE").await == size).await;
    let (mut found, mut next) = (HashSet::new(), None);
    for _ in 0..2 {
        let page = store.inspect_unknown(next.as_ref()).await.unwrap();
        found.extend(page.keys.into_iter().map(|(key, _)| *key.as_bytes()));
        next = page.next;
    }
    assert!(found.len() < 20 && next.is_some(), "one node is left");
    cluster.nodes[2].kill();
    until("the replica has taken over", async || {
        replica.say("CLUSTER FAILOVER TAKEOVER").await;
        replica.say("ROLE").await.contains("master")
    })
    .await;
    let new_primary = format!(":{}@", replica.port());
    until("the others know", async || {
        let nodes = cluster.nodes[0].say("CLUSTER NODES").await;
        nodes.lines().any(|line| line.contains(&new_primary) && line.contains("master"))
    })
    .await;
    // No step for a key tells the store that it has to ask.
    while next.is_some() {
        let page = store.inspect_unknown(next.as_ref()).await.unwrap();
        found.extend(page.keys.into_iter().map(|(key, _)| *key.as_bytes()));
        next = page.next;
    }
    assert_eq!(found.len(), 20);
}

/// Leaves the outcomes of the keys from 0 to 19 unknown.
async fn abandon_twenty(store: &RedisStore) {
    for number in 0..20 {
        let short = BeginOptions::new(Duration::from_millis(50), TTL);
        drop(store.begin(&key(number), &fingerprint(1), &short).await.unwrap());
        until("it is abandoned", async || matches!(begin(store, number).await, Ok(Begin::Abandoned(_)))).await;
    }
}

/// Between two nodes that the store knows, from one that was not read to one that was.
#[tokio::test]
async fn a_slot_that_moves_between_two_pages_hides_no_unknown_outcome() {
    let mut cluster = RedisCluster::start().await;
    cluster.nodes.sort_by_key(|node| format!("127.0.0.1:{}", node.port()));
    let store = builder(&cluster).connect().await.unwrap();
    abandon_twenty(&store).await;
    let page = store.inspect_unknown(None).await.unwrap();
    let mut found: HashSet<_> = page.keys.into_iter().map(|(key, _)| *key.as_bytes()).collect();
    let [to, _, from] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut numbers = 0..20;
    let slot = loop {
        let (node, slot) = owner(&cluster, numbers.next().expect("each node has some of the keys")).await;
        if node.port() == from.port() {
            break slot;
        }
    };
    move_slot(&cluster, slot, from, to, numbers.start - 1).await;
    let mut next = page.next;
    while next.is_some() {
        let page = store.inspect_unknown(next.as_ref()).await.unwrap();
        found.extend(page.keys.into_iter().map(|(key, _)| *key.as_bytes()));
        next = page.next;
    }
    assert_eq!(found.len(), 20);
}

/// Moves the slot of a key, which is the only one in it.
async fn move_slot(cluster: &RedisCluster, slot: u16, from: &Redis, to: &Redis, number: u8) {
    let (from_id, to_id) = (id(from).await, id(to).await);
    ok(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await;
    ok(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await;
    ok(from, &format!("MIGRATE 127.0.0.1 {} {} 0 5000", to.port(), name(number))).await;
    for node in [to, from].into_iter().chain(&cluster.nodes) {
        ok(node, &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
    }
}

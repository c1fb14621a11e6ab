//! A real cluster: three primaries, of which one has a replica, on free ports.

use std::time::{Duration, Instant};

use idem_redis::{ConnectError, Durability, RedisStore, RedisStoreBuilder};
use idem_runtime::{Begin, BeginOptions, Claim, Store};
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::redis::Redis;
use idem_testkit::redis_cluster::{RedisCluster, id, node, ok};
use tokio::net::TcpListener;

use crate::common::*;

pub(crate) fn builder(cluster: &RedisCluster) -> RedisStoreBuilder {
    RedisStore::cluster_builder([cluster.nodes[0].url()]).timeout(Duration::from_secs(5))
}

/// The documented rights of a user in a cluster, for keys with this prefix.
fn documented_rights_in_cluster(prefix: &str) -> Vec<String> {
    let rights = documented_rights().into_iter().chain(["+cluster|slots", "+asking"]);
    rights.map(|right| right.replace("shop", prefix)).collect()
}

/// The node that has the key, and the key's slot.
pub(crate) async fn owner(cluster: &RedisCluster, number: u8) -> (&Redis, u16) {
    for node in &cluster.nodes {
        if node.say(&format!("EXISTS {}", name(number))).await.starts_with(':') {
            let slot = node.say(&format!("CLUSTER KEYSLOT {}", name(number))).await;
            return (node, slot.lines().next().unwrap()[1..].parse().unwrap());
        }
    }
    panic!("no node has the slot of {}", name(number));
}

/// Puts a proxy in front of each node, and waits until each node names them in place of the nodes.
async fn behind_proxies(cluster: &RedisCluster) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for node in &cluster.nodes {
        let proxy = Proxy::to(node.port()).await;
        ok(node, &format!("CONFIG SET cluster-announce-port {}", proxy.port())).await;
        proxies.push(proxy);
    }
    // A store asks any node, and one that does not know the proxies yet leads past them.
    for node in &cluster.nodes {
        know(node, &proxies).await;
    }
    proxies
}

/// Waits until a node names the proxies to those who ask it for the slots.
async fn know(node: &Redis, proxies: &[Proxy]) {
    until("the proxies are known", async || {
        let slots = node.say("CLUSTER SLOTS").await;
        proxies.iter().all(|proxy| slots.contains(&format!(":{}\r\n", proxy.port())))
    })
    .await;
}

#[tokio::test]
async fn claims_and_records_are_on_all_nodes_and_waiters_get_messages_from_any() {
    let cluster = RedisCluster::start().await;
    let (owner, waiter) = (builder(&cluster).connect().await.unwrap(), builder(&cluster).connect().await.unwrap());
    for number in 0..20 {
        let claimed = claim(&owner, number).await;
        assert_in_flight(&begin(&waiter, number).await);
        let waiting = tokio::spawn({
            let waiter = waiter.clone();
            async move { waiter.ended(&key(number)).await }
        });
        claimed.complete(record("response"), TTL).await.unwrap();
        waiting.await.unwrap();
        assert_eq!(recorded(&waiter, number).await, record("response"));
    }
    for node in &cluster.nodes {
        assert!(!node.say("DBSIZE").await.starts_with(":0"), "each node has some of the keys");
    }
    for number in 0..20 {
        assert!(owner.forget(&key(number)).await.unwrap());
        claim(&owner, number).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_slot_that_moves_takes_its_claims_along_and_no_step_is_lost() {
    let cluster = RedisCluster::start().await;
    slot_moves(&cluster, cluster.nodes[0].url()).await;
}

#[tokio::test]
async fn a_slot_that_moves_is_found_with_the_documented_rights() {
    let cluster = RedisCluster::start().await;
    for node in &cluster.nodes {
        let rights = documented_rights_in_cluster("idem");
        set_user(node, &rights.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    slot_moves(&cluster, user_url(&cluster.nodes[0])).await;
}

/// Behind a proxy that has one address for all nodes, they name only ports.
#[tokio::test]
async fn a_slot_that_moves_is_found_if_the_nodes_do_not_name_their_hosts() {
    for endpoint in ["unknown-endpoint", "hostname"] {
        let cluster = RedisCluster::start().await;
        for node in &cluster.nodes {
            ok(node, &format!("CONFIG SET cluster-preferred-endpoint-type {endpoint}")).await;
        }
        slot_moves(&cluster, cluster.nodes[0].url()).await;
    }
}

async fn slot_moves(cluster: &RedisCluster, url: String) {
    let store = RedisStore::cluster_builder([url]).timeout(Duration::from_secs(5)).connect().await.unwrap();
    let mut running = claim(&store, 1).await;
    let (from, slot) = owner(cluster, 1).await;
    let to = cluster.nodes.iter().find(|node| node.port() != from.port()).unwrap();
    let (from_id, to_id) = (id(from).await, id(to).await);
    ok(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await;
    ok(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await;
    // The slot is on its way, and the key is still here.
    running.renew(LEASE).await.unwrap();
    assert_in_flight(&begin(&store, 1).await);
    ok(from, &format!("MIGRATE 127.0.0.1 {} {} 0 5000", to.port(), name(1))).await;
    // The key is there, and only who asks for it expressly gets it.
    running.renew(LEASE).await.unwrap();
    assert_in_flight(&begin(&store, 1).await);
    for node in [to, from] {
        ok(node, &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
    }
    assert_in_flight(&begin(&store, 1).await);
    running.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    assert!(to.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"));
    assert!(store.forget(&key(1)).await.unwrap());
}

/// A new key is claimed on the node that the slot moves to, so it is the replicas of that node which must have it.
#[tokio::test]
async fn a_new_claim_in_a_slot_that_moves_is_confirmed_by_the_replicas_of_its_node() {
    let cluster = RedisCluster::start().await;
    let (from, slot) = owner(&cluster, 1).await;
    let to = cluster.nodes.iter().find(|node| node.port() != from.port()).unwrap();
    let _replica = cluster.replica(to).await;
    cluster.settled(4).await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_secs(2) };
    let store = builder(&cluster).durability(durability).connect().await.unwrap();
    let (from_id, to_id) = (id(from).await, id(to).await);
    ok(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await;
    ok(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await;
    let mut running = claim(&store, 1).await;
    running.renew(LEASE).await.unwrap();
    for node in [to, from] {
        ok(node, &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
    }
    running.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn a_step_waits_for_a_slot_that_no_node_has_for_a_moment() {
    let cluster = RedisCluster::start().await;
    let store = builder(&cluster).connect().await.unwrap();
    claim(&store, 1).await.release().await.unwrap();
    let (owner, slot) = owner(&cluster, 1).await;
    ok(owner, &format!("CLUSTER DELSLOTS {slot}")).await;
    let step = tokio::spawn({
        let store = store.clone();
        async move { begin(&store, 1).await }
    });
    let refused = async || owner.say("INFO errorstats").await.contains("errorstat_CLUSTERDOWN");
    until("the step is refused", refused).await;
    ok(owner, &format!("CLUSTER ADDSLOTS {slot}")).await;
    let begun = step.await.unwrap();
    assert!(matches!(begun, Ok(Begin::Claimed(_))), "{begun:?}");
}

#[tokio::test]
async fn a_step_waits_for_a_slot_that_is_on_no_list_of_the_nodes_for_a_moment() {
    let cluster = RedisCluster::start().await;
    let store = builder(&cluster).connect().await.unwrap();
    let (owner, slot) = owner(&cluster, 1).await;
    let owner_id = id(owner).await;
    for node in &cluster.nodes {
        ok(node, &format!("CLUSTER DELSLOTS {slot}")).await;
        ok(node, "CONFIG RESETSTAT").await;
    }
    let step = tokio::spawn(async move { begin(&store, 1).await });
    let lists = async || {
        let mut lists = 0;
        for node in &cluster.nodes {
            lists += calls(node, "cluster|slots").await;
        }
        lists
    };
    until("the nodes are asked twice", async || step.is_finished() || lists().await > 1).await;
    for node in &cluster.nodes {
        ok(node, &format!("CLUSTER SETSLOT {slot} NODE {owner_id}")).await;
    }
    let begun = step.await.unwrap();
    assert!(matches!(begun, Ok(Begin::Claimed(_))), "{begun:?}");
}

/// As a primary that has restarted. Meanwhile a replica may have taken over.
#[tokio::test]
async fn a_step_waits_for_a_node_that_reads_its_file_for_a_moment() {
    let cluster = RedisCluster::start().await;
    let store = builder(&cluster).connect().await.unwrap();
    drop(claim(&store, 1).await);
    let (node, _) = owner(&cluster, 1).await;
    ok(node, "DEBUG POPULATE 1000 fill 100").await;
    // The delay is in microseconds. After 1024 bytes it replies to others.
    ok(node, "CONFIG SET key-load-delay 1000 loading-process-events-interval-bytes 1024").await;
    let steps = async {
        until("it reads", async || node.say("INFO persistence").await.contains("loading:1")).await;
        // Later versions than 7.0 may say where the slots are.
        if let Err(error) = RedisStore::cluster_builder([node.url()]).connect().await {
            let ConnectError::Unreachable(cause) = &error else { panic!("{error:?}") };
            assert_eq!(cause.code(), Some("LOADING"), "{cause}");
        }
        assert_in_flight(&begin(&store, 1).await);
        assert!(node.say("INFO errorstats").await.contains("errorstat_LOADING"), "the step came after it has read");
    };
    tokio::join!(ok(node, "DEBUG RELOAD"), steps);
}

/// As for a moment when a slot moves: each says that the other one has it.
#[tokio::test]
async fn nodes_that_disagree_about_a_slot_are_not_asked_without_a_pause() {
    let cluster = RedisCluster::start().await;
    let store = builder(&cluster).timeout(Duration::from_secs(1)).connect().await.unwrap();
    let (from, slot) = owner(&cluster, 1).await;
    let to = cluster.nodes.iter().find(|node| node.port() != from.port()).unwrap();
    let (from_id, to_id) = (id(from).await, id(to).await);
    ok(from, &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
    ok(to, &format!("CLUSTER SETSLOT {slot} NODE {from_id}")).await;
    unavailable(begin(&store, 1).await);
    for node in [from, to] {
        let stats = node.say("INFO errorstats").await;
        let (_, moved) = stats.split_once("errorstat_MOVED:count=").expect("it was asked");
        let moved: u64 = moved.lines().next().unwrap().parse().unwrap();
        assert!(moved < 50, "{moved} times in a second");
    }
    ok(from, &format!("CLUSTER SETSLOT {slot} NODE {from_id}")).await;
    claim(&store, 1).await.release().await.unwrap();
}

/// A node deletes the claim, its reply is lost, and then another node has the slot: it knows of no claim, which is as it should be.
#[tokio::test]
async fn a_release_whose_reply_is_lost_has_released_although_the_slot_moves() {
    // The node is away, or it says where the slot is.
    for lose in [Proxy::refuse, Proxy::cut] {
        let cluster = RedisCluster::start().await;
        let (from, slot) = owner(&cluster, 1).await;
        let to = cluster.nodes.iter().find(|node| node.port() != from.port()).unwrap();
        let to_id = id(to).await;
        let proxy = Proxy::to(from.port()).await;
        ok(from, &format!("CONFIG SET cluster-announce-port {}", proxy.port())).await;
        let is_known = format!(":{}\r\n", proxy.port());
        for node in &cluster.nodes {
            until("the proxy is known", async || node.say("CLUSTER SLOTS").await.contains(&is_known)).await;
        }
        let store = RedisStore::cluster_builder([to.url()]).timeout(Duration::from_secs(5)).connect().await.unwrap();
        let claimed = claim(&store, 1).await;
        proxy.set(Direction::ToClient, Fault::Drop);
        let released = tokio::spawn(claimed.release());
        proxy.seen(Direction::ToClient).await;
        for node in [to, from] {
            ok(node, &format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await;
        }
        proxy.heal();
        lose(&proxy);
        released.await.unwrap().unwrap();
        claim(&store, 1).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_failover_keeps_what_the_replica_has() {
    let mut cluster = RedisCluster::start().await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_secs(2) };
    let store = builder(&cluster).durability(durability).connect().await.unwrap();
    let (primary, _) = owner(&cluster, 1).await;
    let replica = cluster.replica(primary).await;
    let port = primary.port();
    cluster.settled(4).await;
    let running = claim_in_time(&store, 1).await;
    assert_in_flight(&begin(&store, 1).await);
    let dead = cluster.nodes.iter().position(|node| node.port() == port).unwrap();
    cluster.nodes[dead].kill();
    // As an operator does it, who does not wait for the other nodes to notice.
    until("the replica has taken over", async || {
        replica.say("CLUSTER FAILOVER TAKEOVER").await;
        replica.say("ROLE").await.contains("master")
    })
    .await;
    until("the claim is found", async || begin(&store, 1).await.is_ok()).await;
    assert_in_flight(&begin(&store, 1).await);
    // No replica is left to have the record.
    assert!(unavailable(running.try_clone().unwrap().complete(record("response"), TTL).await).contains("replicas"));
    // A seed that is not the one of the others.
    let careless = RedisStore::cluster_builder([replica.url()]).connect().await.unwrap();
    drop(running);
    assert_eq!(recorded(&careless, 1).await, record("response"));
}

#[tokio::test]
async fn a_dropped_claim_is_abandoned_and_taken_over_in_a_cluster_too() {
    let cluster = RedisCluster::start().await;
    let store = builder(&cluster).connect().await.unwrap();
    let short = Duration::from_millis(50);
    drop(store.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await.unwrap());
    let mut new_owner = abandoned(&store).await;
    new_owner.renew(LEASE).await.unwrap();
    new_owner.complete(record("response"), TTL).await.unwrap();
    assert!(matches!(begin(&store, 1).await, Ok(Begin::Completed(_))));
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_each_node_is_checked() {
    let cluster = RedisCluster::start().await;
    for node in &cluster.nodes {
        let rights = documented_rights_in_cluster("shop");
        set_user(node, &rights.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let connect = async || RedisStore::cluster_builder([user_url(&cluster.nodes[0])]).prefix("shop").connect().await;
    let store = connect().await.unwrap();
    for number in 0..20 {
        claim(&store, number).await.complete(record("response"), TTL).await.unwrap();
    }
    cluster.nodes[2].say("CONFIG SET maxmemory-policy allkeys-lru").await;
    assert!(matches!(connect().await, Err(ConnectError::Evicts { .. })));
    cluster.nodes[2].say("CONFIG SET maxmemory-policy noeviction").await;
    // As no node is while it fails over.
    cluster.nodes[2].say("ACL SETUSER shop off").await;
    assert!(matches!(connect().await, Err(ConnectError::Unreachable(_))));
    cluster.nodes[2].say("ACL SETUSER shop on").await;
    for lacking in ["+asking", "+cluster|slots"] {
        cluster.nodes[0].say(&format!("ACL SETUSER shop {}", lacking.replace('+', "-"))).await;
        let refused = connect().await.unwrap_err();
        assert!(matches!(&refused, ConnectError::MissingRight { right } if right == lacking), "{refused:?}");
        cluster.nodes[0].say(&format!("ACL SETUSER shop {lacking}")).await;
    }
}

#[tokio::test]
async fn a_single_server_is_no_cluster() {
    let server = Redis::start().await;
    let refused = RedisStore::cluster_builder([server.url()]).connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::NoCluster), "{refused:?}");
    let refused = RedisStore::cluster_builder(Vec::<String>::new()).connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::Setting(_)), "{refused:?}");
}

#[tokio::test]
async fn one_seed_that_replies_is_enough_whatever_the_others_do() {
    let cluster = RedisCluster::start().await;
    // As of hosts that are gone: they take the connection, and never reply. With a full pause before each of them, asking would take
    // longer than connecting may.
    let mut silent = Vec::new();
    for _ in 0..48 {
        silent.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let mut seeds: Vec<_> =
        silent.iter().map(|seed| format!("redis://127.0.0.1:{}", seed.local_addr().unwrap().port())).collect();
    seeds.push(cluster.nodes[0].url());
    let store = RedisStore::cluster_builder(seeds).connect().await.unwrap();
    claim(&store, 1).await.release().await.unwrap();
}

#[tokio::test]
async fn a_seed_may_be_a_replica_since_it_knows_the_primaries() {
    let cluster = RedisCluster::start().await;
    let replica = cluster.replica(&cluster.nodes[0]).await;
    let store = RedisStore::cluster_builder([replica.url()]).timeout(Duration::from_secs(5)).connect().await.unwrap();
    for number in 0..20 {
        claim(&store, number).await.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_distant_cluster_takes_no_longer_to_connect_to_than_one_of_its_nodes() {
    let cluster = RedisCluster::start().await;
    let delay = Duration::from_millis(250);
    let proxies = behind_proxies(&cluster).await;
    // Two replies of each node: to the greeting, and to the checks.
    for proxy in &proxies {
        proxy.set(Direction::ToClient, Fault::Delay(delay));
    }
    RedisStore::cluster_builder([cluster.nodes[0].url()]).timeout(5 * delay).connect().await.unwrap();
}

#[tokio::test]
async fn a_node_that_has_lost_its_cluster_is_not_believed() {
    let cluster = RedisCluster::start().await;
    let lost = node().await;
    let seeds = [lost.url(), cluster.nodes[0].url()];
    let store = RedisStore::cluster_builder(seeds).timeout(Duration::from_secs(5)).connect().await.unwrap();
    claim(&store, 1).await.release().await.unwrap();
    let refused = RedisStore::cluster_builder([lost.url()]).connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::NoCluster), "{refused}");
}

#[tokio::test]
async fn a_node_that_does_not_reply_holds_up_no_unconfirmed_claim_of_another_one() {
    const CLAIMS: u8 = 240;
    let cluster = RedisCluster::start().await;
    let proxies = behind_proxies(&cluster).await;
    let timeout = Duration::from_secs(10);
    let store = RedisStore::cluster_builder([cluster.nodes[0].url()]).timeout(timeout).connect().await.unwrap();
    proxies.iter().for_each(|proxy| proxy.set(Direction::ToClient, Fault::Hold));
    let begins: Vec<_> = (0..CLAIMS)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { begin(&store, number).await })
        })
        .collect();
    let keys = async |nodes: &[Redis]| {
        let mut keys = 0;
        for node in nodes {
            keys += node.say("DBSIZE").await.lines().next().unwrap()[1..].parse::<u8>().unwrap();
        }
        keys
    };
    until("all claims were granted", async || keys(&cluster.nodes).await == CLAIMS).await;
    // Before a reply can be read they are dropped.
    begins.iter().for_each(tokio::task::JoinHandle::abort);
    let (silent, live) = proxies.split_first().unwrap();
    silent.black_hole();
    live.iter().for_each(Proxy::heal);
    let start = Instant::now();
    until("the claims on the other nodes are released", async || keys(&cluster.nodes[1..]).await == 0).await;
    // Not even one try has ended on the one that is silent.
    assert!(start.elapsed() < timeout, "{:?}", start.elapsed());
    assert!(keys(&cluster.nodes[..1]).await > 32, "more claims than tries at a time are on the silent node");
    silent.heal();
    within("the drain", store.drained()).await;
    assert_eq!(keys(&cluster.nodes).await, 0);
}

#[tokio::test]
async fn all_steps_wait_for_one_connection_to_a_node_that_is_silent() {
    let cluster = RedisCluster::start().await;
    let proxies = behind_proxies(&cluster).await;
    let store = builder(&cluster).timeout(TIMEOUT).connect().await.unwrap();
    let (its, _) = owner(&cluster, 1).await;
    let silent = cluster.nodes.iter().position(|node| node.port() == its.port()).unwrap();
    let connections = || proxies.iter().map(Proxy::connections).sum::<u64>();
    proxies[silent].black_hole();
    let (start, before) = (Instant::now(), connections());
    let mut steps = Vec::new();
    for _ in 0..100 {
        tokio::time::sleep(TIMEOUT / 20).await;
        let store = store.clone();
        steps.push(tokio::spawn(async move { store.inspect(&key(1)).await }));
    }
    for step in steps {
        unavailable(step.await.unwrap());
    }
    let (made, at_most) = (connections() - before, start.elapsed().div_duration_f64(TIMEOUT) + 1.0);
    assert!(made as f64 <= at_most, "{made} connections, and not {at_most}");
    proxies[silent].heal();
    claim(&store, 1).await;
}

/// As when a service restarts while a node fails over.
#[tokio::test]
async fn a_node_that_is_away_keeps_no_store_from_connecting_and_is_checked_when_it_is_back() {
    let cluster = RedisCluster::start().await;
    let replica = cluster.replica(&cluster.nodes[0]).await;
    let proxies = behind_proxies(&cluster).await;
    know(&replica, &proxies).await;
    let (away, its_port) = (&proxies[1], cluster.nodes[1].port());
    let connect = async || RedisStore::cluster_builder([cluster.nodes[0].url()]).timeout(TIMEOUT).connect().await;
    let (mut there, mut gone) = (0, 0);
    for number in 0..20 {
        *if owner(&cluster, number).await.0.port() == its_port { &mut gone } else { &mut there } = number;
    }
    for case in ["it refuses", "it is silent", "it is a replica by now"] {
        match case {
            "it refuses" => away.refuse(),
            "it is silent" => away.black_hole(),
            _ => away.redirect(replica.port()),
        }
        let store = connect().await.expect(case);
        claim(&store, there).await.release().await.unwrap();
        unavailable(begin(&store, gone).await);
        cluster.nodes[1].say("CONFIG SET maxmemory-policy allkeys-lru").await;
        away.redirect(its_port);
        away.heal();
        let before = away.connections();
        let said = unavailable(begin(&store, gone).await);
        assert!(said.contains("maxmemory-policy"), "{case}: {said}");
        let connections = away.connections() - before;
        assert!(connections <= 4, "{case}: {connections} connections for one step");
        cluster.nodes[1].say("CONFIG SET maxmemory-policy noeviction").await;
        claim(&store, gone).await.release().await.unwrap();
    }
    // The nodes name addresses that lead nowhere.
    proxies.iter().for_each(Proxy::refuse);
    let refused = connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::Unreachable(_)), "{refused:?}");
}

//! A Redis Cluster.

use crate::process::free_port;
use crate::redis::Redis;
use crate::wait::until;

const SLOTS: u16 = 16384;

/// A cluster of three primaries, on free ports. They are killed when this is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    /// The primaries.
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes, and waits until they serve all slots.
    ///
    /// # Panics
    /// If they do not.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(node().await);
        }
        for (number, node) in (0..3).zip(&nodes) {
            let (first, last) =
                (SLOTS / 3 * number, if number == 2 { SLOTS - 1 } else { SLOTS / 3 * (number + 1) - 1 });
            ok(node, &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
            // Nodes with equal epochs would settle that later, and move slots about.
            ok(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1)).await;
            if number > 0 {
                ok(&nodes[0], &format!("CLUSTER MEET {}", address(node).await)).await;
            }
        }
        let cluster = Self { nodes };
        cluster.settled(3).await;
        cluster
    }

    /// Waits until all nodes know this many, and serve all slots.
    ///
    /// # Panics
    /// If they do not.
    pub async fn settled(&self, count: usize) {
        for node in &self.nodes {
            until("the cluster is up", async || {
                let info = node.say("CLUSTER INFO").await;
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{count}\r\n"))
                    && info.contains("cluster_slots_ok:16384")
            })
            .await;
        }
    }

    /// Adds a replica of a node, and returns it once it follows.
    ///
    /// # Panics
    /// If it does not.
    pub async fn replica(&self, of: &Redis) -> Redis {
        let replica = node().await;
        ok(&replica, &format!("CLUSTER MEET {}", address(of).await)).await;
        let id = id(of).await;
        until("the replica follows", async || replica.say(&format!("CLUSTER REPLICATE {id}")).await.starts_with("+OK"))
            .await;
        until("the replica knows all nodes", async || {
            let (nodes, info) = (replica.say("CLUSTER NODES").await, replica.say("CLUSTER INFO").await);
            nodes.matches(" connected").count() == self.nodes.len() + 1
                && !nodes.contains("handshake")
                && info.contains("cluster_state:ok")
                && info.contains("cluster_size:3")
        })
        .await;
        // Otherwise they would not hear of it if the one that it follows is killed.
        let name = self::id(&replica).await;
        for node in &self.nodes {
            until("a node knows the replica", async || {
                let nodes = node.say("CLUSTER NODES").await;
                nodes
                    .lines()
                    .any(|line| line.starts_with(&name) && line.contains(" slave ") && line.contains(" connected"))
            })
            .await;
        }
        until("the replica is up to date", async || {
            replica.say("INFO replication").await.contains("master_link_status:up")
                && of.say("INFO replication").await.contains("state=online")
        })
        .await;
        replica
    }
}

/// Starts a node that belongs to no cluster yet.
pub async fn node() -> Redis {
    // The port of the cluster's own connections is free, as far as is known: by default it is 10000 higher than the other one,
    // where the system hands out ports to clients.
    let bus = free_port().to_string();
    let in_cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
    Redis::with(&[&["--save", "", "--enable-debug-command", "local"], &in_cluster[..]].concat()).await
}

/// Returns the name of a node among the others.
///
/// # Panics
/// If it has none.
pub async fn id(node: &Redis) -> String {
    node.say("CLUSTER MYID").await.lines().nth(1).expect("a name").to_owned()
}

/// Says a command that the node must accept.
///
/// # Panics
/// If it does not.
pub async fn ok(node: &Redis, command: &str) {
    let said = node.say(command).await;
    assert!(said.starts_with("+OK"), "{command}: {said}");
}

/// Where other nodes find this one.
async fn address(node: &Redis) -> String {
    let bus = node.say("CONFIG GET cluster-port").await;
    format!("127.0.0.1 {} {}", node.port(), bus.lines().nth(4).expect("a port"))
}

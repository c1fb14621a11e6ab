//! A cluster: which node has a key, and what to do when the key has moved.
//!
//! Each node has its own connection, with all that a connection to a single server has. A step is on one key. A node that does not
//! have it says which one does, and has done nothing.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{join_all, select_ok};
use redis::{Client, Cmd, Pipeline, ServerError, Value, cmd};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::connection::{Connection, Reply};
use crate::errors::{ConnectError, Error};
use crate::link::{Address, LinkSource};
use crate::node::{NewNode, Node};
use crate::turns::Turns;
use crate::value::Name;

const SLOTS: u16 = 16384;
/// The pause before a step is sent again if the cluster cannot tell who has its key, as during a failover; and before one more node
/// is asked, at most.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a step is redirected before there is a pause. Nodes may disagree about a slot for a while.
const MAX_REDIRECTIONS: u32 = 3;

pub(crate) struct Cluster {
    /// A client of one node, with the settings for all.
    client: Client,
    /// The nodes that are asked for the others.
    seeds: Vec<Address>,
    new: NewNode,
    state: RwLock<Topology>,
    /// A node did not reply, so another one may have its slots by now.
    is_stale: AtomicBool,
    /// At most one task asks for the nodes.
    asking: Turns,
}

#[derive(Default)]
struct Topology {
    nodes: HashMap<Address, Arc<Node>>,
    /// The node of each slot. Empty until the cluster was asked.
    slots: Vec<Option<Address>>,
    /// How often the cluster was asked.
    version: u64,
}

/// Another node has the key.
struct Redirection {
    slot: u16,
    to: Address,
    /// Only this step goes there: the slot is being moved.
    once: bool,
}

impl Cluster {
    pub(crate) fn new(client: Client, seeds: Vec<Address>, new: NewNode) -> Self {
        let (state, is_stale, asking) = (RwLock::default(), AtomicBool::new(true), Turns::new());
        Self { client, seeds, new, state, is_stale, asking }
    }

    /// Asks for the nodes, and connects to each of them. Some may be away: what needs them connects to them, and checks them.
    pub(crate) async fn open(&self, deadline: Instant) -> Result<(), ConnectError> {
        let no_reply = |_| Err(ConnectError::NoReply(self.new.timeout));
        timeout_at(deadline, self.ask(0)).await.unwrap_or_else(no_reply)?;
        let nodes: Vec<_> = self.read(|state| state.nodes.values().cloned().collect());
        let open = async |node: &Node| timeout_at(deadline, node.connection.open()).await.unwrap_or_else(no_reply);
        let opened = join_all(nodes.iter().map(|node| open(node))).await;
        let is_any_there = opened.iter().any(Result::is_ok);
        for error in opened.into_iter().filter_map(Result::err) {
            if !is_any_there || !error.may_pass() {
                return Err(error);
            }
            tracing::warn!(%error, "a node of the Redis Cluster cannot be used; its keys are refused until it can");
        }
        Ok(())
    }

    /// Returns a client of some node: each passes messages on to all others.
    pub(crate) fn subscriber(&self) -> Option<Client> {
        let node = self.read(|state| state.slots.iter().flatten().find_map(|at| state.nodes.get(at).cloned()));
        node?.connection.source().subscriber()
    }

    /// Returns the node that has the key, as far as is known, and its address.
    pub(crate) fn owner(&self, name: &Name) -> Option<(Address, Arc<Node>)> {
        let slot = usize::from(slot(&name.0));
        self.read(|state| {
            let (at, node) = state.nodes.get_key_value(state.slots.get(slot)?.as_ref()?)?;
            Some((at.clone(), Arc::clone(node)))
        })
    }

    /// Returns the nodes that have slots, in the order of their addresses, and a text that says which node has which slots.
    pub(crate) async fn primaries(&self, deadline: Instant) -> Result<(Vec<Arc<Node>>, String), Error> {
        let version = self.read(|state| state.version);
        // In a process whose steps meet no key that has moved, no other question would tell. If no node replies, what was known counts.
        let _ = timeout_at(deadline, self.ask(version)).await;
        let (mut primaries, mut slots) = (BTreeMap::new(), String::new());
        self.read(|state| {
            for (number, at) in state.slots.iter().enumerate() {
                // Of neighbours that have the same node, the first one.
                if number > 0 && state.slots[number - 1] == *at {
                    continue;
                }
                let address = at.as_ref().map(|at| format!("{}:{}", at.host, at.port)).unwrap_or_default();
                slots.push_str(&format!("{number} {address} "));
                if let Some(node) = at.as_ref().and_then(|at| state.nodes.get(at)) {
                    primaries.insert(address, Arc::clone(node));
                }
            }
        });
        if primaries.is_empty() {
            Err(Error::NotConnected(self.new.timeout))
        } else {
            Ok((primaries.into_values().collect(), slots))
        }
    }

    /// Sends a command until a node that has its key replies.
    pub(crate) async fn send(&self, name: &Name, command: &Cmd, deadline: Instant) -> Result<Reply<Value>, Error> {
        let mut repeated = false;
        let mut redirection: Option<Redirection> = None;
        let (mut redirections, mut earlier) = (0, None);
        loop {
            let version = self.read(|state| state.version);
            if self.is_stale.load(Ordering::SeqCst) {
                // If no node replies, the step says so.
                let _ = timeout_at(deadline, self.ask(version)).await;
            }
            let sent = match redirection.take() {
                Some(Redirection { to, once: true, .. }) => {
                    let mut commands = Pipeline::new();
                    commands.cmd("ASKING").add_command(command.clone());
                    let sent = self.node_at(&to).connection.send(&commands, deadline).await;
                    sent.map(|reply| (to, Reply { value: last(reply.value), repeated: reply.repeated }))
                }
                _ => match self.owner(name) {
                    Some((at, node)) => node.connection.send(command, deadline).await.map(|reply| (at, reply)),
                    // Slots are being given to other nodes.
                    None => Err(Error::Unreachable(
                        io::Error::other("no node of the cluster has the slot of the key").into(),
                    )),
                },
            };
            match sent {
                Ok((asked, mut reply)) => {
                    let error = match &reply.value {
                        Value::ServerError(error) => Some(error),
                        _ => None,
                    };
                    match error.map_or("", ServerError::code) {
                        "MOVED" | "ASK" => {
                            redirection = error.and_then(|error| self.redirected(error, &asked));
                            redirections += 1;
                            if redirections > MAX_REDIRECTIONS {
                                self.ask_after_a_pause(version, deadline).await;
                            }
                        }
                        "CLUSTERDOWN" | "TRYAGAIN" | "READONLY" | "LOADING" => {
                            self.ask_after_a_pause(version, deadline).await
                        }
                        _ => {
                            reply.repeated |= repeated;
                            return Ok(reply);
                        }
                    }
                    repeated |= reply.repeated;
                    if Instant::now() >= deadline {
                        return Ok(Reply { repeated, ..reply });
                    }
                }
                // A failover may have given the slot to another node.
                Err(error @ (Error::Unreachable(_) | Error::Unfit { .. } | Error::Broken(_))) => {
                    repeated |= error.is_in_doubt();
                    // What an operator must change is not waited for, once the nodes were asked who has the slot.
                    let stays = matches!(&error, Error::Unfit { error, .. } if !error.may_pass()) && earlier.is_some();
                    if stays || Instant::now() + PAUSE >= deadline {
                        return Err(if repeated { error.after_another_try() } else { error });
                    }
                    earlier = Some(error);
                    self.ask_after_a_pause(version, deadline).await;
                }
                Err(error) => {
                    self.is_stale.store(true, Ordering::SeqCst);
                    let error = match (error, earlier) {
                        // There was too little time for this try. The one before says why.
                        (Error::NotConnected(_), Some(earlier)) => earlier,
                        (error, _) => error,
                    };
                    return Err(if repeated { error.after_another_try() } else { error });
                }
            }
        }
    }

    /// Waits until enough replicas of the node that has the key have its value, which begins with `start`. While a slot moves, a new
    /// value is on the node that the slot moves to.
    pub(crate) async fn replicate(&self, name: &Name, start: Bytes) -> Result<(), Error> {
        let Some((mut at, mut node)) = self.owner(name) else { return Err(Error::Unconfirmed) };
        let mut redirections = 0;
        loop {
            let error = match node.replicate(name, start.clone()).await {
                Err(Error::Refused { error, .. }) if redirections < MAX_REDIRECTIONS => error,
                replicated => return replicated,
            };
            let Some(Redirection { to, .. }) = self.redirected(&error, &at) else {
                return Err(Error::Refused { error, repeated: true });
            };
            (node, at) = (self.node_at(&to), to);
            redirections += 1;
        }
    }

    /// Returns where a node leads that has refused a command, and remembers it if it is for good.
    fn redirected(&self, error: &ServerError, asked: &Address) -> Option<Redirection> {
        let redirection = redirected(error, asked)?;
        if let Redirection { slot, to, once: false } = &redirection {
            self.moved(*slot, to);
        }
        Some(redirection)
    }

    async fn ask_after_a_pause(&self, version: u64, deadline: Instant) {
        sleep(PAUSE).await;
        // If no node replies, the next try says so.
        let _ = timeout_at(deadline, self.ask(version)).await;
    }

    /// Asks the nodes which slots they have, unless that has been done since `version`. They are asked one after the other, but one
    /// that does not reply holds up no other: several may be gone.
    async fn ask(&self, version: u64) -> Result<(), ConnectError> {
        let _asking = self.asking.take(self.new.timeout).await;
        if self.read(|state| state.version) > version {
            return Ok(());
        }
        let mut known: Vec<_> = self.read(|state| state.nodes.keys().cloned().collect());
        known.extend(self.seeds.iter().filter(|seed| !known.contains(seed)).cloned().collect::<Vec<_>>());
        let no_reply = ConnectError::NoReply(self.new.timeout);
        let Some(count) = u32::try_from(known.len()).ok().filter(|&count| count > 0) else { return Err(no_reply) };
        let pause = (self.new.timeout / 2 / count).min(PAUSE);
        let asked = known.iter().zip(0..).map(|(at, before)| {
            let asked = async move {
                sleep(pause * before).await;
                slots(&self.node_at(at).connection, at).await
            };
            asked.boxed()
        });
        let (slots, _) = timeout(self.new.timeout, select_ok(asked)).await.unwrap_or(Err(no_reply))?;
        self.set(slots);
        self.is_stale.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn set(&self, ranges: Vec<(u16, u16, Address)>) {
        let mut slots = vec![None; usize::from(SLOTS)];
        let mut found: HashMap<Address, Arc<Node>> = HashMap::new();
        for (first, last, at) in ranges {
            found.entry(at.clone()).or_insert_with(|| self.node_at(&at));
            for slot in slots.iter_mut().take(usize::from(last) + 1).skip(usize::from(first)) {
                *slot = Some(at.clone());
            }
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.nodes = found;
        state.slots = slots;
        state.version += 1;
    }

    fn moved(&self, slot: u16, to: &Address) {
        let _ = self.node_at(to);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = state.slots.get_mut(usize::from(slot)) {
            *at = Some(to.clone());
        }
    }

    fn node_at(&self, at: &Address) -> Arc<Node> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(state.nodes.entry(at.clone()).or_insert_with(|| self.make(at)))
    }

    fn make(&self, at: &Address) -> Arc<Node> {
        Arc::new(self.new.node(LinkSource::at(&self.client, at), true))
    }

    fn read<T>(&self, read: impl FnOnce(&Topology) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks a node which primary has which slots.
async fn slots(connection: &Connection, asked: &Address) -> Result<Vec<(u16, u16, Address)>, ConnectError> {
    let mut question = cmd("CLUSTER");
    question.arg("SLOTS");
    let reply = match connection.open().await {
        Ok(()) => match connection.send(&question, connection.deadline()).await {
            Ok(reply) => reply.value,
            Err(Error::Unreachable(error) | Error::Broken(error)) => return Err(ConnectError::Unreachable(error)),
            Err(Error::Unfit { error, .. }) => return Err(error),
            Err(_) => return Err(ConnectError::NoReply(connection.timeout())),
        },
        // It takes no steps, but it knows the primaries.
        Err(ConnectError::Replica) => {
            let replied = async { connection.source().connect().await?.command(&question).await };
            replied.await.map_err(ConnectError::Unreachable)?
        }
        Err(error) => return Err(error),
    };
    match reply {
        // A node that has lost its cluster knows of no slots.
        Value::Array(ranges) if !ranges.is_empty() => {
            Ok(ranges.into_iter().filter_map(|range| parse_range(range, asked)).collect())
        }
        Value::ServerError(error) if error.code() == "NOPERM" => {
            Err(ConnectError::MissingRight { right: "+cluster|slots".into() })
        }
        Value::ServerError(error) if error.code() == "LOADING" => Err(ConnectError::Unreachable(error.into())),
        _ => Err(ConnectError::NoCluster),
    }
}

/// Reads a range of slots: first, last, and then its nodes, of which the primary comes first.
fn parse_range(range: Value, asked: &Address) -> Option<(u16, u16, Address)> {
    let Value::Array(range) = range else { return None };
    let mut range = range.into_iter();
    let mut number = || redis::from_redis_value::<u16>(range.next()?).ok();
    let (first, last) = (number()?, number()?);
    let Value::Array(primary) = range.next()? else { return None };
    let mut primary = primary.into_iter();
    let host: Option<String> = redis::from_redis_value(primary.next()?).ok()?;
    let port = redis::from_redis_value(primary.next()?).ok()?;
    Some((first, last, address(host.as_deref().unwrap_or_default(), port, asked)))
}

/// Returns where a node is that another one names. A host that it does not name is its own.
fn address(host: &str, port: u16, asked: &Address) -> Address {
    let is_named = !host.is_empty() && host != "?";
    Address { host: if is_named { host } else { &asked.host }.to_owned(), port }
}

/// Reads `MOVED 3999 host:port` or `ASK 3999 host:port`, which the node at `asked` has replied.
fn redirected(error: &ServerError, asked: &Address) -> Option<Redirection> {
    let once = match error.code() {
        "ASK" => true,
        "MOVED" => false,
        _ => return None,
    };
    let (slot, to) = error.details()?.split_once(' ')?;
    let (host, port) = to.rsplit_once(':')?;
    let to = address(host, port.parse().ok()?, asked);
    Some(Redirection { slot: slot.parse().ok()?, to, once })
}

/// The reply to the command after `ASKING`.
fn last(mut values: Vec<Value>) -> Value {
    values.pop().unwrap_or_default()
}

/// Returns the slot of a key: CRC-16 (XMODEM) over it, or over what is between its first braces.
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_slot_of_a_range_has_its_node_and_a_page_of_keys_comes_from_each() {
        let at = |host: &str| Address { host: host.into(), port: 6379 };
        let (prefix, timeout) = ("idem".to_owned(), Duration::from_secs(1));
        let new = NewNode { texts: [""; 8], prefix, durability: crate::Durability::None, timeout };
        let cluster = Cluster::new(Client::open("redis://b").unwrap(), vec![at("b")], new);
        assert!(cluster.subscriber().is_none());
        for version in 1..3 {
            cluster.set(vec![(0, 99, at("b")), (100, SLOTS - 1, at("a"))]);
            assert_eq!(cluster.read(|state| state.version), version);
        }
        for (slot, host) in [(0, "b"), (99, "b"), (100, "a"), (SLOTS - 1, "a")] {
            let found = cluster.read(|state| state.slots[usize::from(slot)].clone());
            assert_eq!(found, Some(at(host)), "{slot}");
        }
        assert!(cluster.subscriber().is_some());
        cluster.is_stale.store(false, Ordering::SeqCst);
        let (primaries, slots) = cluster.primaries(Instant::now() + timeout).await.unwrap();
        assert_eq!((primaries.len(), &*slots), (2, "0 b:6379 100 a:6379 "));
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        // CLUSTER KEYSLOT of a server says so.
        for (key, expected) in
            [("123456789", 0x31c3), ("foo", 12182), ("{foo}.bar", 12182), ("a{}b", 13694), ("{x", 11068)]
        {
            assert_eq!(slot(key), expected, "{key}");
        }
    }
}

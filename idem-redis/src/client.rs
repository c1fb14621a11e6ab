//! What every step needs: the scripts, and the server that has the key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::StorageKey;
use redis::{Cmd, Value};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::config::Durability;
use crate::connection::Reply;
use crate::errors::{ConnectError, Error};
use crate::link::{Address, LinkSource, Place};
use crate::node::{NewNode, Node};
use crate::scripts::{Script, ScriptReply, Scripts};
use crate::value::Name;

/// What the clones of a store and their claims share.
pub(crate) struct Client {
    servers: Servers,
    pub(crate) scripts: Scripts,
    pub(crate) prefix: String,
    pub(crate) timeout: Duration,
}

enum Servers {
    One(Arc<Node>),
    Cluster(Box<Cluster>),
}

/// The result of a step to which the server has replied.
pub(crate) struct StepResult {
    pub(crate) reply: ScriptReply,
    /// Whether it was sent twice, so that this may be the reply to a repetition.
    pub(crate) repeated: bool,
}

impl Client {
    pub(crate) fn new(place: Place, prefix: String, durability: Durability, timeout: Duration) -> Self {
        let scripts = Scripts::new();
        let new = NewNode { texts: scripts.texts(), prefix: prefix.clone(), durability, timeout };
        let servers = match place {
            Place::Server(source) => Servers::One(Arc::new(new.node(source, false))),
            Place::Cluster(client, seeds) => Servers::Cluster(Box::new(Cluster::new(*client, seeds, new))),
        };
        Self { servers, scripts, prefix, timeout }
    }

    /// Connects, unless that has been done.
    pub(crate) async fn open(&self) -> Result<(), ConnectError> {
        match &self.servers {
            Servers::One(node) => node.connection.open().await,
            Servers::Cluster(cluster) => cluster.open(self.deadline()).await,
        }
    }

    /// When a step that begins now must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Returns where the node of a cluster is that has the key, as far as is known.
    pub(crate) fn address(&self, name: &Name) -> Option<Address> {
        match &self.servers {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => cluster.owner(name).map(|(at, _)| at),
        }
    }

    /// Returns what a subscription is made of. `None` if waiters only poll.
    pub(crate) fn subscriber(&self) -> Option<redis::Client> {
        match &self.servers {
            Servers::One(node) => node.connection.source().subscriber(),
            Servers::Cluster(cluster) => cluster.subscriber(),
        }
    }

    /// Whether waiters get messages.
    pub(crate) fn subscribes(&self) -> bool {
        !matches!(&self.servers, Servers::One(node) if matches!(node.connection.source(), LinkSource::Manager(_)))
    }

    /// Sends one command on this key.
    pub(crate) async fn send(&self, name: &Name, command: &Cmd, deadline: Instant) -> Result<Reply<Value>, Error> {
        match &self.servers {
            Servers::One(node) => node.connection.send(command, deadline).await,
            Servers::Cluster(cluster) => cluster.send(name, command, deadline).await,
        }
    }

    /// Returns the servers that share the keys, always in the same order, and a text that says which one has which.
    pub(crate) async fn servers(&self, deadline: Instant) -> Result<(Vec<Arc<Node>>, String), Error> {
        match &self.servers {
            Servers::One(node) => Ok((vec![Arc::clone(node)], String::new())),
            Servers::Cluster(cluster) => cluster.primaries(deadline).await,
        }
    }

    pub(crate) fn name(&self, key: &StorageKey) -> Name {
        Name::new(&self.prefix, key)
    }

    /// Runs one script, and reads its reply.
    pub(crate) async fn step(
        &self,
        script: &Script,
        name: &Name,
        arguments: &[&[u8]],
        deadline: Instant,
    ) -> Result<StepResult, Error> {
        let Reply { value, repeated } = self.run(script, name, arguments, deadline).await?;
        Ok(StepResult { reply: ScriptReply::read(value)?, repeated })
    }

    /// Runs one script. A server that does not know it gets its text.
    pub(crate) async fn run(
        &self,
        script: &Script,
        name: &Name,
        arguments: &[&[u8]],
        deadline: Instant,
    ) -> Result<Reply<Value>, Error> {
        let mut reply = self.send(name, &script.by_hash(Some(&name.0), arguments), deadline).await?;
        if Script::is_unknown(&reply.value) {
            let repeated = reply.repeated;
            let sent = self.send(name, &script.in_full(Some(&name.0), arguments), deadline).await;
            reply = sent.map_err(|error| if repeated { error.after_another_try() } else { error })?;
            reply.repeated |= repeated;
        }
        reply.accepted()
    }

    /// Waits until enough replicas have the value of a key, which begins with `start`.
    pub(crate) async fn replicate(&self, name: &Name, start: Bytes) -> Result<(), Error> {
        match &self.servers {
            Servers::One(node) => node.replicate(name, start).await,
            Servers::Cluster(cluster) => cluster.replicate(name, start).await,
        }
    }
}

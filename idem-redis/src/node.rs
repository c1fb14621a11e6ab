//! One server: the connection to it, and the one on which its replicas are waited for.

use std::time::Duration;

use bytes::Bytes;

use crate::checks::Checks;
use crate::config::Durability;
use crate::connection::Connection;
use crate::errors::Error;
use crate::link::LinkSource;
use crate::replicas::Replicas;
use crate::value::Name;

pub(crate) struct Node {
    pub(crate) connection: Connection,
    /// `None` if no replica must have a write.
    replicas: Option<Replicas>,
}

/// What all nodes of a store have in common.
pub(crate) struct NewNode {
    pub(crate) texts: [&'static str; 8],
    pub(crate) prefix: String,
    pub(crate) durability: Durability,
    pub(crate) timeout: Duration,
}

impl NewNode {
    pub(crate) fn node(&self, source: LinkSource, in_cluster: bool) -> Node {
        let Self { texts, prefix, durability, timeout } = self;
        let checks = |texts| Checks::new(prefix, texts, *durability != Durability::None, in_cluster);
        let replicas = match *durability {
            Durability::None => None,
            Durability::Replicas { count, within } => {
                let connection = Connection::new(source.clone(), checks(Vec::new()), *timeout, within);
                Some(Replicas::new(connection, count, within, in_cluster))
            }
        };
        Node { connection: Connection::new(source, checks(texts.to_vec()), *timeout, Duration::ZERO), replicas }
    }
}

impl Node {
    /// Waits until enough replicas have the value of a key, which begins with `start`.
    pub(crate) async fn replicate(&self, name: &Name, start: Bytes) -> Result<(), Error> {
        let Some(replicas) = &self.replicas else { return Ok(()) };
        let confirmed = replicas.have(name, start).await;
        if matches!(confirmed, Err(Error::Unconfirmed)) {
            // One of the two connections may lead to a server that the other one's has replaced.
            self.connection.give_up();
            replicas.give_up();
        }
        confirmed
    }
}

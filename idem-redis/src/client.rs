//! What every step needs: the connection, the scripts, and the replicas that must have a write.

use std::time::Duration;

use bytes::Bytes;
use idem_runtime::StorageKey;
use redis::Value;
use tokio::time::Instant;

use crate::checks::Checks;
use crate::config::Durability;
use crate::connection::{Connection, Reply};
use crate::errors::Error;
use crate::link::Source;
use crate::replicas::Replicas;
use crate::scripts::{Script, Scripts};
use crate::value::Name;

/// What the clones of a store and their claims share.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) scripts: Scripts,
    pub(crate) prefix: String,
    /// `None` if no replica must have a write.
    replicas: Option<Replicas>,
}

/// What a script replied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ScriptReply {
    /// It did its step, or found that it had done it before.
    Done,
    /// The lease of the claim has not expired.
    NotExpired,
    /// The key has another value: a claim, or a record of which this is the head.
    Found(Bytes),
    /// The key has no value.
    Absent,
}

impl ScriptReply {
    pub(crate) fn read(value: Value) -> Result<Self, Error> {
        match value {
            Value::Int(1) => Ok(Self::Done),
            Value::Int(0) => Ok(Self::NotExpired),
            Value::BulkString(value) => Ok(Self::Found(value.into())),
            Value::Nil => Ok(Self::Absent),
            _ => Err(Error::UnknownReply),
        }
    }
}

/// The result of a step to which the server has replied.
pub(crate) struct StepResult {
    pub(crate) reply: ScriptReply,
    /// Whether it was sent twice, so that this may be the reply to a repetition.
    pub(crate) repeated: bool,
}

impl Client {
    pub(crate) fn new(source: Source, prefix: String, durability: Durability, timeout: Duration) -> Self {
        let scripts = Scripts::new();
        let checks = |texts| Checks::new(&prefix, texts, durability != Durability::None);
        let connection = Connection::new(source.clone(), checks(scripts.texts().into()), timeout, Duration::ZERO);
        let replicas = match durability {
            Durability::None => None,
            Durability::Replicas { count, within } => {
                Some(Replicas::new(Connection::new(source, checks(Vec::new()), timeout, within), count, within))
            }
        };
        Self { connection, scripts, prefix, replicas }
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
        let mut reply = self.connection.send(&script.by_hash(&name.0, arguments), deadline).await?;
        if Script::is_unknown(&reply.value) {
            let repeated = reply.repeated;
            reply = self.connection.send(&script.in_full(&name.0, arguments), deadline).await?;
            reply.repeated |= repeated;
        }
        reply.accepted()
    }

    /// Waits until enough replicas have the value of a key, which begins with `start`.
    pub(crate) async fn replicate(&self, name: &Name, start: Bytes) -> Result<(), Error> {
        match &self.replicas {
            None => Ok(()),
            Some(replicas) => replicas.have(name, start).await,
        }
    }
}

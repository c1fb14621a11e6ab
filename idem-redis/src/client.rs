//! What every step needs: the connection, the scripts, and the replicas that must have a write.

use std::time::Duration;

use bytes::Bytes;
use idem_runtime::StorageKey;
use redis::{InfoDict, Pipeline, Value, cmd};
use tokio::time::Instant;

use crate::config::Durability;
use crate::connection::{Connection, Reply};
use crate::errors::{ConnectError, Error};
use crate::scripts::{Script, Scripts};
use crate::value::Name;

/// The oldest server that knows `SET NX GET`. Valkey reports at least that.
const MIN_VERSION: (u32, u32) = (7, 0);

/// What the clones of a store and their claims share.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) scripts: Scripts,
    pub(crate) prefix: String,
    pub(crate) durability: Durability,
}

/// What a script replied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ScriptReply {
    /// It did its step, or found that it had done it before.
    Done,
    /// The lease of the claim has not expired.
    NotExpired,
    /// The key has another value.
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
    /// An error says that the step took effect, but too few replicas have it.
    pub(crate) replicated: Result<(), Error>,
    /// Whether it was sent twice, so that this may be the reply to a repetition.
    pub(crate) repeated: bool,
}

/// Whether replicas must have a step before it counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replication {
    AsConfigured,
    None,
}

impl Client {
    pub(crate) fn name(&self, key: &StorageKey) -> Name {
        Name::new(&self.prefix, key)
    }

    /// Runs one script, and waits for replicas if it wrote.
    pub(crate) async fn step(
        &self,
        script: &Script,
        name: &Name,
        arguments: &[&[u8]],
        replication: Replication,
        deadline: Instant,
    ) -> Result<StepResult, Error> {
        let Reply { value, repeated, connection } = self.run(script, name, arguments, deadline).await?;
        let reply = ScriptReply::read(value)?;
        let must_replicate = reply == ScriptReply::Done && replication == Replication::AsConfigured;
        let replicated = if must_replicate { self.replicate(connection, deadline).await } else { Ok(()) };
        Ok(StepResult { reply, replicated, repeated })
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
        if matches!(&reply.value, Value::ServerError(error) if error.code() == "NOSCRIPT") {
            let repeated = reply.repeated;
            reply = self.connection.send(&script.in_full(&name.0, arguments), deadline).await?;
            reply.repeated |= repeated;
        }
        reply.accepted()
    }

    /// Waits until enough replicas have what was written. Not in the same round trip as the write: a step that finds a record
    /// writes nothing, and must not wait for replicas that are gone. On the same connection, since WAIT waits for its writes.
    pub(crate) async fn replicate(&self, connection: u64, deadline: Instant) -> Result<(), Error> {
        let Durability::Replicas { count: want, within } = self.durability else { return Ok(()) };
        let mut wait = cmd("WAIT");
        wait.arg(want).arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        match self.connection.send_on(connection, &wait, deadline).await? {
            Value::Int(have) if have >= i64::from(want) => Ok(()),
            Value::Int(have) => Err(Error::NotReplicated { have, want, within }),
            _ => Err(Error::UnknownReply),
        }
    }

    /// Loads the scripts, and checks the server's version and what it does when its memory is full.
    pub(crate) async fn check_server(&self, timeout: Duration) -> Result<(), ConnectError> {
        let mut questions = Pipeline::new();
        questions.cmd("INFO").arg("server");
        questions.cmd("CONFIG").arg("GET").arg("maxmemory-policy");
        // Hosted servers refuse CONFIG.
        questions.cmd("INFO").arg("memory");
        // It does not matter if this fails: a step whose script the server does not know sends the text along.
        for text in self.scripts.texts() {
            questions.cmd("SCRIPT").arg("LOAD").arg(text);
        }
        let sent = self.connection.send(&questions, self.connection.deadline()).await;
        let reply = sent.map_err(|error| match error {
            Error::Unreachable(error) | Error::Broken(error) => ConnectError::Unreachable(error),
            _ => ConnectError::NoReply(timeout),
        })?;
        let mut values = reply.value.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let (server, config, memory) = (info(next()), next(), info(next()));

        match server.and_then(|server| server.get::<String>("redis_version")) {
            Some(version) if parse_version(&version).is_some_and(|version| version < MIN_VERSION) => {
                return Err(ConnectError::TooOld { version });
            }
            Some(version) => tracing::debug!(%version, "connected to Redis"),
            None => {
                tracing::warn!(
                    "could not check the version of Redis, since INFO does not contain it; it must be at least 7.0"
                );
            }
        }
        let policy = setting(config).or_else(|| memory.and_then(|memory| memory.get::<String>("maxmemory_policy")));
        match policy.as_deref() {
            Some("noeviction") => Ok(()),
            Some(policy) => Err(ConnectError::Evicts { policy: policy.to_owned() }),
            None => {
                tracing::warn!(
                    "could not check the `maxmemory-policy` of Redis, since neither CONFIG GET nor INFO contains it; unless it \
                     is `noeviction`, claims and records are evicted when the memory is full, and handlers run twice"
                );
                Ok(())
            }
        }
    }
}

fn info(value: Value) -> Option<InfoDict> {
    redis::from_redis_value(value).ok()
}

/// Returns the value in a reply to CONFIG GET, which is a list or a map.
fn setting(value: Value) -> Option<String> {
    let pairs: Vec<(String, String)> = redis::from_redis_value(value).ok()?;
    pairs.into_iter().find_map(|(name, value)| (name == "maxmemory-policy").then_some(value))
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("7.0.15"), Some((7, 0)));
        let parsed = |version| parse_version(version).unwrap();
        assert!(parsed("6.2.14") < MIN_VERSION && parsed("10.0.0") > MIN_VERSION && parsed("7.2.4") > MIN_VERSION);
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn a_reply_to_config_get_is_read_and_an_error_is_not() {
        let text = |text: &str| Value::BulkString(text.into());
        let reply = Value::Array(vec![text("maxmemory-policy"), text("allkeys-lru")]);
        assert_eq!(setting(reply).as_deref(), Some("allkeys-lru"));
        assert_eq!(setting(Value::Nil), None);
        assert_eq!(setting(Value::Array(vec![])), None);
    }
}

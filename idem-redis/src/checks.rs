//! What is checked on each new connection, before the first step: a failover may lead to another server.

use redis::{InfoDict, Pipeline, Value};

use crate::errors::ConnectError;
use crate::link::Link;
use crate::scripts::Script;

/// The oldest server that the store is tested with. Valkey reports at least that.
const MIN_VERSION: (u32, u32) = (7, 0);

pub(crate) struct Checks {
    /// Tries the commands of all other scripts.
    script: Script,
    /// What the server is told beforehand, so that the first steps need no second round trip.
    texts: Vec<&'static str>,
    prefix: String,
    /// Whether `WAIT` is used.
    waits: bool,
}

impl Checks {
    pub(crate) fn new(prefix: &str, texts: Vec<&'static str>, waits: bool) -> Self {
        Self { script: Script::new(include_str!("scripts/check.lua")), texts, prefix: prefix.to_owned(), waits }
    }

    /// Checks the server behind a new connection. Nothing is written.
    pub(crate) async fn pass(&self, link: &mut Link) -> Result<(), ConnectError> {
        let key = format!("{}:check", self.prefix);
        let mut questions = Pipeline::new();
        questions.cmd("INFO").arg("server");
        questions.cmd("INFO").arg("replication");
        questions.cmd("INFO").arg("memory");
        questions.add_command(self.script.by_hash(&key, &[]));
        questions.add_command(self.script.in_full(&key, &[]));
        if self.waits {
            questions.cmd("WAIT").arg(0).arg(1);
        }
        // It does not matter if this fails: a step whose script the server does not know sends the text along.
        for text in &self.texts {
            questions.cmd("SCRIPT").arg("LOAD").arg(text);
        }
        let mut values = link.pipeline(&questions).await.map_err(ConnectError::Unreachable)?.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let infos = [next(), next(), next()];
        if infos.iter().any(is_without_right) {
            return Err(self.missing("+info"));
        }
        let [server, replication, memory] = infos.map(info);
        check_server(server.as_ref())?;
        if get(replication.as_ref(), "role").is_some_and(|role| role != "master") {
            return Err(ConnectError::Replica);
        }
        check_policy(memory.as_ref())?;
        self.check_rights(&next(), "+evalsha")?;
        let in_full = next();
        self.check_rights(&in_full, "+eval")?;
        let missing: Vec<String> = redis::from_redis_value(in_full).unwrap_or_default();
        if !missing.is_empty() {
            return Err(self.missing(&missing.join(" ")));
        }
        if self.waits { self.check_rights(&next(), "+wait") } else { Ok(()) }
    }

    /// Judges the reply to a command, which needs `right`.
    fn check_rights(&self, reply: &Value, right: &str) -> Result<(), ConnectError> {
        match reply {
            Value::ServerError(error) if is_without_right(reply) => {
                let of_key = error.details().is_some_and(|details| details.contains("key"));
                Err(self.missing(if of_key { "" } else { right }))
            }
            _ => Ok(()),
        }
    }

    /// Without a right that is named, those to the keys are missing.
    fn missing(&self, right: &str) -> ConnectError {
        let right = if right.is_empty() { format!("~{}:*", self.prefix) } else { right.to_owned() };
        ConnectError::MissingRight { right }
    }
}

fn is_without_right(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOPERM")
}

fn check_server(server: Option<&InfoDict>) -> Result<(), ConnectError> {
    match get(server, "redis_version") {
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
    if get(server, "redis_mode").is_some_and(|mode| mode == "cluster") {
        return Err(ConnectError::ClusterNode);
    }
    Ok(())
}

fn check_policy(memory: Option<&InfoDict>) -> Result<(), ConnectError> {
    match get(memory, "maxmemory_policy") {
        Some(policy) if policy == "noeviction" => Ok(()),
        Some(policy) => Err(ConnectError::Evicts { policy }),
        None => {
            tracing::warn!(
                "could not check the `maxmemory-policy` of Redis, since INFO does not contain it; unless it is `noeviction`, \
                 claims and records are evicted when the memory is full, and handlers run twice"
            );
            Ok(())
        }
    }
}

fn info(value: Value) -> Option<InfoDict> {
    redis::from_redis_value(value).ok()
}

fn get(info: Option<&InfoDict>, name: &str) -> Option<String> {
    info.and_then(|info| info.get(name))
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
}

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
    /// Whether the server must be a node of a cluster.
    in_cluster: bool,
}

impl Checks {
    pub(crate) fn new(prefix: &str, texts: Vec<&'static str>, waits: bool, in_cluster: bool) -> Self {
        let script = Script::new(include_str!("scripts/check.lua"));
        Self { script, texts, prefix: prefix.to_owned(), waits, in_cluster }
    }

    /// Checks the server behind a new connection. Nothing is written.
    pub(crate) async fn pass(&self, link: &mut Link) -> Result<(), ConnectError> {
        let (key, rights_to_keys) = (format!("{}:check", self.prefix), format!("~{}:*", self.prefix));
        let arguments = [key.as_bytes(), rights_to_keys.as_bytes()];
        let mut questions = Pipeline::new();
        questions.cmd("INFO").arg("server");
        questions.cmd("INFO").arg("replication");
        questions.cmd("INFO").arg("memory");
        if self.in_cluster {
            // It concerns the next command, which has no key here.
            questions.cmd("ASKING");
        }
        questions.add_command(self.script.by_hash(None, &arguments));
        questions.add_command(self.script.in_full(None, &arguments));
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
        for info in &infos {
            match info {
                Value::ServerError(_) if is_without_right(info) => return Err(missing("+info")),
                // It refuses everything: without a password, or while a script is running. If it does not know INFO, it may be good.
                Value::ServerError(error) if error.code() != "ERR" => {
                    return Err(ConnectError::Unreachable(error.clone().into()));
                }
                _ => {}
            }
        }
        let [server, replication, memory] = infos.map(info);
        check_version(server.as_ref())?;
        // Valkey has another name for it.
        let mode = get(server.as_ref(), "redis_mode").or_else(|| get(server.as_ref(), "server_mode"));
        match mode.as_deref() {
            Some("cluster") if !self.in_cluster => return Err(ConnectError::ClusterNode),
            Some("standalone" | "sentinel") if self.in_cluster => return Err(ConnectError::NoCluster),
            _ => {}
        }
        if get(replication.as_ref(), "role").is_some_and(|role| role != "master") {
            return Err(ConnectError::Replica);
        }
        check_policy(memory.as_ref())?;
        if self.in_cluster && is_without_right(&next()) {
            return Err(missing("+asking"));
        }
        let (by_hash, in_full) = (next(), next());
        if is_without_right(&by_hash) || is_unknown(&by_hash) {
            return Err(missing("+evalsha"));
        }
        if is_without_right(&in_full) || is_unknown(&in_full) {
            return Err(missing("+eval"));
        }
        let rights: Vec<String> = redis::from_redis_value(in_full).unwrap_or_default();
        if !rights.is_empty() {
            return Err(missing(&rights.join(" ")));
        }
        if self.waits {
            let waited = next();
            if is_without_right(&waited) || is_unknown(&waited) {
                return Err(missing("+wait"));
            }
        }
        Ok(())
    }
}

fn missing(right: &str) -> ConnectError {
    ConnectError::MissingRight { right: right.to_owned() }
}

fn is_without_right(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOPERM")
}

/// Whether the server does not know the command, as after a `rename-command`.
fn is_unknown(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.details().is_some_and(|why| why.starts_with("unknown command")))
}

fn check_version(server: Option<&InfoDict>) -> Result<(), ConnectError> {
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
    use idem_testkit::redis::Redis;

    use super::*;
    use crate::link::LinkSource;

    /// It would take keys of all slots.
    #[tokio::test]
    async fn a_single_server_in_the_place_of_a_node_is_refused() {
        let server = Redis::start().await;
        let client = redis::Client::open(server.url()).unwrap();
        let mut link = LinkSource::of(client.get_connection_info().clone()).connect().await.unwrap();
        Checks::new("shop", Vec::new(), false, false).pass(&mut link).await.unwrap();
        let refused = Checks::new("shop", Vec::new(), false, true).pass(&mut link).await.unwrap_err();
        assert!(matches!(refused, ConnectError::NoCluster), "{refused:?}");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("7.0.15"), Some((7, 0)));
        let parsed = |version| parse_version(version).unwrap();
        assert!(parsed("6.2.14") < MIN_VERSION && parsed("10.0.0") > MIN_VERSION && parsed("7.2.4") > MIN_VERSION);
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn an_old_server_is_refused_and_one_of_an_unknown_version_is_not() {
        let check = |text: &str| check_version(Some(&InfoDict::new(text)));
        let refused = check("redis_version:6.2.14\r\n").unwrap_err();
        assert!(matches!(&refused, ConnectError::TooOld { version } if version == "6.2.14"), "{refused:?}");
        for text in ["redis_version:7.0.0\r\n", "redis_version:unknown\r\n", ""] {
            check(text).unwrap();
        }
    }
}

//! How a store is set up, and what it refuses to work with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{Client, InfoDict, Pipeline, Value};

use crate::RedisStore;
use crate::errors::{ConnectError, Trouble};
use crate::link::Link;
use crate::scripts::Scripts;
use crate::store::Inner;

/// The oldest server that knows `SET NX GET`. Valkey calls itself at least that.
const OLDEST: (u32, u32) = (7, 0);
/// Redis counts in milliseconds, and takes none for ever.
const SHORTEST: Duration = Duration::from_millis(1);
/// Nobody waits longer for a step.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// How many copies of a claim and a record there must be before the body runs and before the answer goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// One, in the server that was asked. Nothing is waited for.
    #[default]
    None,
    /// So many replicas must have it, too (`WAIT`). If they have not in time, the body does not run, and the engine tries
    /// again to keep the record. Replicas need not have it on disk.
    Replicas {
        /// How many replicas, at least 1.
        count: u32,
        /// For how long to wait for them: from a millisecond to an hour. It comes on top of the [`timeout`](RedisStoreBuilder::timeout) of a step.
        within: Duration,
    },
}

/// Sets up a [`RedisStore`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStoreBuilder {
    url: String,
    prefix: String,
    durability: Durability,
    timeout: Duration,
}

impl RedisStoreBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self { url, prefix: "idem".into(), durability: Durability::None, timeout: Duration::from_secs(2) }
    }

    /// What the names of all keys and channels begin with, before a colon. Two prefixes never meet. Default: `idem`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How many copies there must be. Default: [`Durability::None`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long one step may take, connecting included. After that the request is refused with 503. Default: 2 seconds.
    ///
    /// The engine waits five seconds for a step; a longer timeout does not help. From a millisecond to an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects, and checks that the server keeps what it is given.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong with the settings or with the server. Nothing was written.
    pub async fn connect(self) -> Result<RedisStore, ConnectError> {
        if self.prefix.is_empty() {
            return Err(ConnectError::Setting("`prefix` is empty; give the keys a name, such as `idem`"));
        }
        if self.timeout < SHORTEST {
            return Err(ConnectError::Setting("`timeout` is shorter than a millisecond; no step could succeed"));
        }
        if self.timeout > LONGEST {
            let what = "`timeout` is longer than an hour; set a few seconds, the engine waits for 5";
            return Err(ConnectError::Setting(what));
        }
        if let Durability::Replicas { count, within } = self.durability {
            if count == 0 {
                return Err(ConnectError::Setting("`count` of replicas is 0; use `Durability::None`"));
            }
            if within < SHORTEST {
                return Err(ConnectError::Setting("`within` is shorter than a millisecond; no replica could answer"));
            }
            if within > LONGEST {
                let what =
                    "`within` is longer than an hour; set some milliseconds, the engine waits 5 seconds for a step";
                return Err(ConnectError::Setting(what));
            }
        }
        let client = Client::open(self.url).map_err(ConnectError::Unreachable)?;
        let wait = match self.durability {
            Durability::None => Duration::ZERO,
            Durability::Replicas { within, .. } => within,
        };
        let link = Arc::new(Link::new(client, self.timeout.saturating_add(wait)));
        let scripts = Scripts::new();
        check(&link, &scripts, self.timeout).await?;
        Ok(RedisStore { inner: Arc::new(Inner::new(link, scripts, self.prefix, self.durability)) })
    }
}

/// Leaves the URL out, which may have a password.
impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("prefix", &self.prefix)
            .field("durability", &self.durability)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Makes the scripts known, and looks at the server's version and at what it does when its memory is full.
async fn check(link: &Link, scripts: &Scripts, timeout: Duration) -> Result<(), ConnectError> {
    let mut questions = Pipeline::new();
    questions.cmd("INFO").arg("server");
    questions.cmd("CONFIG").arg("GET").arg("maxmemory-policy");
    // CONFIG is closed where somebody else runs the server.
    questions.cmd("INFO").arg("memory");
    // Whether this succeeds does not matter: a step whose script the server does not know sends the text along.
    for text in scripts.texts() {
        questions.cmd("SCRIPT").arg("LOAD").arg(text);
    }
    let answers = link.send(&questions, link.deadline()).await.map_err(|trouble| match trouble {
        Trouble::Unreachable(error) | Trouble::Broken(error) => ConnectError::Unreachable(error),
        _ => ConnectError::Silent(timeout),
    })?;
    let mut answers = answers.answer.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let (server, config, memory) = (info(next()), next(), info(next()));

    match server.and_then(|server| server.get::<String>("redis_version")) {
        Some(version) if parse(&version).is_some_and(|version| version < OLDEST) => {
            return Err(ConnectError::TooOld { version });
        }
        Some(version) => tracing::debug!(%version, "connected to Redis"),
        None => {
            tracing::warn!("INFO does not say which version Redis has, so it was not checked; it must be at least 7.0")
        }
    }
    let policy = setting(config).or_else(|| memory.and_then(|memory| memory.get::<String>("maxmemory_policy")));
    match policy.as_deref() {
        Some("noeviction") => Ok(()),
        Some(policy) => Err(ConnectError::Evicts { policy: policy.to_owned() }),
        None => {
            tracing::warn!(
                "neither CONFIG GET nor INFO says which `maxmemory-policy` Redis has, so it was not checked; with another \
                 than `noeviction` claims and records are thrown away when its memory is full, and bodies run twice"
            );
            Ok(())
        }
    }
}

fn info(answer: Value) -> Option<InfoDict> {
    redis::from_redis_value(answer).ok()
}

/// The value in an answer to CONFIG GET, which is a list or a map.
fn setting(answer: Value) -> Option<String> {
    let pairs: Vec<(String, String)> = redis::from_redis_value(answer).ok()?;
    pairs.into_iter().find_map(|(name, value)| (name == "maxmemory-policy").then_some(value))
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse("7.0.15"), Some((7, 0)));
        assert!(
            parse("6.2.14").unwrap() < OLDEST && parse("10.0.0").unwrap() > OLDEST && parse("7.2.4").unwrap() > OLDEST
        );
        assert_eq!(parse("unknown"), None);
    }

    #[test]
    fn an_answer_to_config_get_is_read_and_an_error_is_not() {
        let text = |text: &str| Value::BulkString(text.into());
        let answer = Value::Array(vec![text("maxmemory-policy"), text("allkeys-lru")]);
        assert_eq!(setting(answer).as_deref(), Some("allkeys-lru"));
        assert_eq!(setting(Value::Nil), None);
        assert_eq!(setting(Value::Array(vec![])), None);
    }

    #[test]
    fn a_builder_does_not_show_the_password() {
        let builder = RedisStore::builder("redis://:secret@localhost");
        assert!(!format!("{builder:?}").contains("secret"));
    }
}

//! What can go wrong: what failed, why, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use idem_runtime::{DecodeError, StoreError};
use redis::{RedisError, ServerError};

/// Why a [`RedisStore`](crate::RedisStore) could not be made. Nothing was written to Redis.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use idem_redis::{ConnectError, RedisStore};
///
/// let error = RedisStore::builder("redis://localhost:6379").timeout(Duration::ZERO).connect().await.unwrap_err();
/// assert!(matches!(error, ConnectError::Setting(_)));
/// println!("{error}");
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting of the builder cannot work.
    Setting(&'static str),
    /// The URL is not one of a Redis server, or the server cannot be reached, or it refused the user.
    Unreachable(RedisError),
    /// The server did not reply in time.
    NoReply(Duration),
    /// The server evicts keys when its memory is full.
    Evicts {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// The server is a replica, which takes no writes.
    Replica,
    /// The server is a node of a cluster, which has some of the keys only.
    ClusterNode,
    /// The server is not a node of a cluster, or of none that has slots.
    NoCluster,
    /// The user lacks a right, or the server does not know the command.
    MissingRight {
        /// What `ACL SETUSER` must grant, such as `+evalsha`.
        right: String,
    },
    /// The server is too old.
    TooOld {
        /// Its version.
        version: String,
    },
}

impl ConnectError {
    /// Whether a node of a cluster is like that while it restarts, or fails over.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(error) => error.is_io_error() || matches!(error.code(), Some("BUSY" | "LOADING")),
            Self::NoReply(_) | Self::Replica => true,
            _ => false,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(what) => write!(f, "{what}; no connection was made"),
            // The source may repeat the URL, which may contain a password, so it is not repeated here.
            Self::Unreachable(_) => f.write_str(
                "could not reach Redis, nothing was written; check the URL, the password, and that the server runs",
            ),
            Self::NoReply(timeout) => write!(
                f,
                "Redis did not reply within {timeout:?}, nothing was written; check the server, or set a longer `timeout`"
            ),
            Self::Evicts { policy } => write!(
                f,
                "Redis has `maxmemory-policy {policy}` and would evict claims and records when its memory is full, so that \
                 handlers run twice; nothing was written. Set `maxmemory-policy noeviction` in redis.conf, or with CONFIG SET"
            ),
            Self::Replica => f.write_str(
                "the Redis server is a replica and takes no writes, so nothing was written; give the URL of the primary, or of a \
                 proxy that leads to it",
            ),
            Self::ClusterNode => f.write_str(
                "the Redis server is a node of a cluster and has some of the keys only, so nothing was written; connect with \
                 `RedisStore::cluster_builder`, or give the URL of a server without `cluster-enabled`",
            ),
            Self::NoCluster => f.write_str(
                "the Redis server is not a node of a cluster with slots, so nothing was written; connect with \
                 `RedisStore::builder`, or let the node join its cluster",
            ),
            Self::MissingRight { right } => write!(
                f,
                "the user lacks rights in Redis, so nothing was written; grant them with ACL SETUSER, or undo the `rename-command` of \
                 their commands: {right}"
            ),
            Self::TooOld { version } => {
                write!(f, "Redis {version} is too old, so nothing was written; it needs Redis 7.0, or Valkey")
            }
        }
    }
}

impl StdError for ConnectError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Unreachable(source) => Some(source),
            _ => None,
        }
    }
}

/// Why a step failed. The engine logs it, and the client gets a 503.
#[derive(Clone, Debug)]
pub(crate) enum Error {
    /// No connection; nothing was sent.
    Unreachable(RedisError),
    /// The server behind a new connection cannot be used. If an earlier connection broke, what was sent there may have taken effect.
    Unfit { error: ConnectError, repeated: bool },
    /// No connection in time; nothing was sent.
    NotConnected(Duration),
    /// The connection broke after the step was sent.
    Broken(RedisError),
    /// The connection broke, and the repetition does not tell what the first try did.
    Unconfirmed,
    /// No reply in time.
    NoReply(Duration),
    /// The server refused the step. If it was sent twice, the first one may have taken effect.
    Refused { error: ServerError, repeated: bool },
    /// The server replied something that the scripts do not return.
    UnknownReply,
    /// The value under the key was not written by this store, or is damaged.
    Unreadable { name: String, cause: Option<DecodeError> },
    /// Too few replicas have the write.
    NotReplicated { have: i64, want: u32, within: Duration },
}

impl Error {
    /// Whether the step may nevertheless have taken effect.
    pub(crate) fn is_in_doubt(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NotConnected(_) | Self::Unreadable { .. } => false,
            Self::Refused { repeated, .. } | Self::Unfit { repeated, .. } => *repeated,
            Self::Broken(_)
            | Self::Unconfirmed
            | Self::NoReply(_)
            | Self::UnknownReply
            | Self::NotReplicated { .. } => true,
        }
    }

    /// What this error says if the step was sent once before.
    pub(crate) fn after_another_try(self) -> Self {
        match self {
            Self::Unreachable(error) => Self::Broken(error),
            Self::NotConnected(timeout) => Self::NoReply(timeout),
            Self::Unfit { error, .. } => Self::Unfit { error, repeated: true },
            Self::Refused { error, .. } => Self::Refused { error, repeated: true },
            error => error,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.code() == "OOM")
    }

    /// Whether the user may not run a command, or may not access the key.
    fn is_without_right(&self) -> bool {
        // As Redis 7.0 says it of a command in a script, and as later versions and Valkey do.
        let in_script = |why: &str| why.contains("can't run this command") || why.contains("ACL failure in script");
        matches!(self, Self::Refused { error, .. } if error.code() == "NOPERM" || error.details().is_some_and(in_script))
    }

    /// Whether the step is longer than the server takes (`proto-max-bulk-len`).
    pub(crate) fn is_too_long(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.details().is_some_and(|why| why.contains("invalid bulk length")))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "could not reach Redis, nothing was sent: {error}"),
            Self::Unfit { error, .. } => write!(f, "could not use the Redis server of a new connection: {error}"),
            Self::NotConnected(timeout) => write!(f, "no connection to Redis within {timeout:?}, nothing was sent"),
            Self::Broken(error) => {
                write!(f, "the connection to Redis broke, it is unknown whether the step took effect: {error}")
            }
            Self::Unconfirmed => {
                f.write_str("the connection to Redis broke, and it is unknown what the step did; look again")
            }
            Self::NoReply(timeout) => {
                write!(f, "no reply from Redis within {timeout:?}, it is unknown whether the step took effect")
            }
            Self::Refused { error, .. } => {
                write!(f, "Redis refused the step: {error}")?;
                if self.is_without_right() {
                    // Redis 7.0 does not say which one if the command is in a script.
                    f.write_str("; the user lacks a right: `ACL LOG` in Redis names it, and ACL SETUSER grants it")?;
                }
                Ok(())
            }
            Self::UnknownReply => f.write_str("Redis gave a reply that this version of the store does not know"),
            Self::Unreadable { name, cause } => {
                write!(f, "the value under `{name}` in Redis cannot be read")?;
                if let Some(cause) = cause {
                    write!(f, " ({cause})")?;
                }
                f.write_str("; it was left as it is. DEL it once it is known what its request did")
            }
            Self::NotReplicated { have, want, within } => write!(
                f,
                "{have} of {want} replicas had the write within {within:?}; check the replicas, or ask for less `durability`"
            ),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Unreachable(source) | Self::Broken(source) => Some(source),
            Self::Refused { error, .. } => Some(error),
            Self::Unfit { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        let is_unreadable = match &error {
            Error::Unreadable { .. } => true,
            // The value is not a string.
            Error::Refused { error, .. } => error.code() == "WRONGTYPE",
            _ => false,
        };
        if is_unreadable { Self::unreadable(error) } else { Self::unavailable(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn after_a_retry_each_failure_leaves_the_step_in_doubt() {
        let unreachable = || RedisError::from(io::Error::other("refused"));
        let second = Duration::from_secs(1);
        for error in [
            Error::Unreachable(unreachable()),
            Error::Unfit { error: ConnectError::Replica, repeated: false },
            Error::NotConnected(second),
            Error::Broken(unreachable()),
            Error::Unconfirmed,
            Error::NoReply(second),
            Error::UnknownReply,
        ] {
            let shown = error.to_string();
            assert!(error.after_another_try().is_in_doubt(), "{shown}");
        }
    }

    #[test]
    fn what_was_not_sent_or_was_refused_once_leaves_no_doubt() {
        for error in [
            Error::Unreachable(io::Error::other("refused").into()),
            Error::NotConnected(Duration::from_secs(1)),
            Error::Unfit { error: ConnectError::Replica, repeated: false },
            Error::Unreadable { name: "idem:a5*".into(), cause: None },
        ] {
            assert!(!error.is_in_doubt(), "{error}");
        }
    }

    #[test]
    fn an_error_names_what_caused_it() {
        let unreachable = || RedisError::from(io::Error::other("refused by a firewall"));
        let cause = |error: &dyn StdError| error.source().map(ToString::to_string);
        let expected = Some(unreachable().to_string());
        assert_eq!(cause(&ConnectError::Unreachable(unreachable())), expected);
        assert_eq!(cause(&Error::Unreachable(unreachable())), expected);
        assert_eq!(cause(&Error::Broken(unreachable())), expected);
        let unfit = Error::Unfit { error: ConnectError::Replica, repeated: false };
        assert_eq!(cause(&unfit), Some(ConnectError::Replica.to_string()));
        let Ok(redis::Value::ServerError(error)) = redis::parse_redis_value(b"-READONLY it takes no writes\r\n") else {
            panic!("an error of the server");
        };
        let expected = Some(error.to_string());
        assert_eq!(cause(&Error::Refused { error, repeated: false }), expected);
    }
}

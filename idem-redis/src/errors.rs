//! What can go wrong, in words that say what happened, what was not done, and what to do now.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use idem_runtime::{StoreError, Undecodable};
use redis::{RedisError, ServerError};

use crate::wire::Name;

/// Why a [`RedisStore`](crate::RedisStore) could not be made. Nothing was written to Redis.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting of the builder makes no sense.
    Setting(&'static str),
    /// The URL is not one of a Redis server, or the server cannot be reached, or it did not let us in.
    Unreachable(RedisError),
    /// The server did not answer in time.
    Silent(Duration),
    /// The server throws keys away when its memory is full.
    Evicts {
        /// Its `maxmemory-policy`.
        policy: String,
    },
    /// The server is too old.
    TooOld {
        /// Its version.
        version: String,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(what) => write!(f, "{what}; no connection was made"),
            // The source may repeat the URL, which may have a password, so it is not repeated here.
            Self::Unreachable(_) => f.write_str(
                "Redis cannot be reached, so there is no store; check the URL, the password, and that the server runs",
            ),
            Self::Silent(timeout) => write!(
                f,
                "Redis did not answer within {timeout:?}, so there is no store; check the server, or set a longer `timeout`"
            ),
            Self::Evicts { policy } => write!(
                f,
                "Redis has `maxmemory-policy {policy}` and would throw claims and records away when its memory is full, so \
                 that bodies run twice; the store was not made. Set `maxmemory-policy noeviction` in redis.conf, or with \
                 CONFIG SET"
            ),
            Self::TooOld { version } => {
                write!(f, "Redis {version} is too old, so the store was not made; it needs Redis 7.0, or Valkey")
            }
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable(source) => Some(source),
            _ => None,
        }
    }
}

/// Why a step gave no answer. The engine logs it, and the client gets a 503.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No random numbers, so no owner token.
    Random(String),
    /// No connection; nothing was sent.
    Unreachable(RedisError),
    /// No connection in time; nothing was sent.
    Unconnected(Duration),
    /// The connection broke after the step was sent.
    Broken(RedisError),
    /// The connection broke, and the repetition does not tell what the step itself did.
    Unheard,
    /// No answer in time.
    Silent(Duration),
    /// The server refused the step; if it was sent twice, the first time may have taken effect.
    Refused { error: ServerError, repeated: bool },
    /// The server answered something that the scripts do not say.
    Reply,
    /// What stands under the key was not written by this store, or was damaged.
    Unreadable { name: String, why: Option<Undecodable> },
    /// Too few replicas have the write.
    NotReplicated { have: i64, want: u32, within: Duration },
}

impl Trouble {
    /// What stands under this name cannot be read.
    pub(crate) fn unreadable(name: &Name) -> Self {
        Self::Unreadable { name: name.short(), why: None }
    }

    /// Whether the step may have taken effect all the same.
    pub(crate) fn is_uncertain(&self) -> bool {
        match self {
            Self::Random(_) | Self::Unreachable(_) | Self::Unconnected(_) | Self::Unreadable { .. } => false,
            Self::Refused { repeated, .. } => *repeated,
            Self::Broken(_) | Self::Unheard | Self::Silent(_) | Self::Reply | Self::NotReplicated { .. } => true,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.code() == "OOM")
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random(error) => {
                write!(f, "no random owner token could be made, so nothing was sent to Redis: {error}")
            }
            Self::Unreachable(error) => write!(f, "Redis cannot be reached, nothing was sent: {error}"),
            Self::Unconnected(timeout) => write!(f, "no connection to Redis within {timeout:?}, nothing was sent"),
            Self::Broken(error) => {
                write!(f, "the connection to Redis broke, whether the step took effect is unknown: {error}")
            }
            Self::Unheard => {
                f.write_str("the connection to Redis broke, and it is unknown what the step did; look again")
            }
            Self::Silent(timeout) => {
                write!(f, "no answer from Redis within {timeout:?}, whether the step took effect is unknown")
            }
            Self::Refused { error, .. } => write!(f, "Redis refused the step: {error}"),
            Self::Reply => f.write_str("Redis gave an answer that this version of the store does not know"),
            Self::Unreadable { name, why } => {
                write!(f, "the value under `{name}` in Redis cannot be read")?;
                if let Some(why) = why {
                    write!(f, " ({why})")?;
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

impl Error for Trouble {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable(source) | Self::Broken(source) => Some(source),
            Self::Refused { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unreadable { .. } => Self::unreadable(trouble),
            _ => Self::unavailable(trouble),
        }
    }
}

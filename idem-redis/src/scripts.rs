//! The scripts: each takes one key, and writes only if its value is, byte for byte, what the caller has seen or written.

use bytes::Bytes;
use redis::{Cmd, Value, cmd};
use sha1_smol::Sha1;

use crate::errors::Error;

/// The scripts of the store.
pub(crate) struct Scripts {
    pub(crate) begin: Script,
    pub(crate) peek: Script,
    pub(crate) inspect: Script,
    pub(crate) renew: Script,
    pub(crate) take_over: Script,
    pub(crate) complete: Script,
    pub(crate) release: Script,
    pub(crate) forget: Script,
}

/// One script, with the hash by which the server knows it once it has seen it.
pub(crate) struct Script {
    text: &'static str,
    hash: String,
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

/// Returns the text of a script that looks at its key.
macro_rules! looking {
    ($file:literal) => {
        concat!(include_str!("scripts/look.lua"), include_str!($file))
    };
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            begin: Script::new(looking!("scripts/begin.lua")),
            peek: Script::new(looking!("scripts/peek.lua")),
            inspect: Script::new(include_str!("scripts/inspect.lua")),
            renew: Script::new(looking!("scripts/renew.lua")),
            take_over: Script::new(looking!("scripts/take_over.lua")),
            complete: Script::new(looking!("scripts/complete.lua")),
            release: Script::new(looking!("scripts/release.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
        }
    }

    pub(crate) fn texts(&self) -> [&'static str; 8] {
        let Self { begin, peek, inspect, renew, take_over, complete, release, forget } = self;
        [begin, peek, inspect, renew, take_over, complete, release, forget].map(|script| script.text)
    }
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, hash: Sha1::from(text).digest().to_string() }
    }

    /// Returns a call by hash. The server replies NOSCRIPT if it does not know the script.
    pub(crate) fn by_hash(&self, key: Option<&str>, arguments: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.hash, key, arguments)
    }

    /// Returns whether the reply to a call by hash says that the server does not know the script.
    pub(crate) fn is_unknown(reply: &Value) -> bool {
        matches!(reply, Value::ServerError(error) if error.code() == "NOSCRIPT")
    }

    /// Returns a call with the whole text. From then on the server knows the script.
    pub(crate) fn in_full(&self, key: Option<&str>, arguments: &[&[u8]]) -> Cmd {
        call("EVAL", self.text, key, arguments)
    }
}

fn call(command: &str, script: &str, key: Option<&str>, arguments: &[&[u8]]) -> Cmd {
    let mut call = cmd(command);
    call.arg(script).arg(usize::from(key.is_some())).arg(key);
    for argument in arguments {
        call.arg(*argument);
    }
    call
}

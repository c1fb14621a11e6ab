//! The scripts: each takes one key, and writes only if its value is, byte for byte, what the caller has seen or written.

use redis::{Cmd, cmd};
use sha1_smol::Sha1;

/// The scripts of the store.
pub(crate) struct Scripts {
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

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            inspect: Script::new(include_str!("scripts/inspect.lua")),
            renew: Script::new(include_str!("scripts/renew.lua")),
            take_over: Script::new(include_str!("scripts/take_over.lua")),
            complete: Script::new(include_str!("scripts/complete.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
        }
    }

    pub(crate) fn texts(&self) -> [&str; 6] {
        let Self { inspect, renew, take_over, complete, release, forget } = self;
        [inspect, renew, take_over, complete, release, forget].map(|script| script.text)
    }
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: Sha1::from(text).digest().to_string() }
    }

    /// Returns a call by hash. The server replies NOSCRIPT if it does not know the script.
    pub(crate) fn by_hash(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.hash, key, arguments)
    }

    /// Returns a call with the whole text. From then on the server knows the script.
    pub(crate) fn in_full(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        call("EVAL", self.text, key, arguments)
    }
}

fn call(command: &str, script: &str, key: &str, arguments: &[&[u8]]) -> Cmd {
    let mut call = cmd(command);
    call.arg(script).arg(1).arg(key);
    for argument in arguments {
        call.arg(*argument);
    }
    call
}

//! The scripts: each takes one key, and writes only if what stands there is, byte for byte, what the caller has seen or written.

use redis::{Cmd, cmd};
use sha1_smol::Sha1;

/// The scripts of the store.
pub(crate) struct Scripts {
    pub(crate) look: Text,
    pub(crate) renew: Text,
    pub(crate) complete: Text,
    pub(crate) release: Text,
    pub(crate) forget: Text,
}

/// One script, with the name that the server knows it by once it has seen it.
pub(crate) struct Text {
    text: &'static str,
    hash: String,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            look: Text::new(include_str!("scripts/look.lua")),
            renew: Text::new(include_str!("scripts/renew.lua")),
            complete: Text::new(include_str!("scripts/complete.lua")),
            release: Text::new(include_str!("scripts/release.lua")),
            forget: Text::new(include_str!("scripts/forget.lua")),
        }
    }

    pub(crate) fn texts(&self) -> [&str; 5] {
        [&self.look, &self.renew, &self.complete, &self.release, &self.forget].map(|script| script.text)
    }
}

impl Text {
    fn new(text: &'static str) -> Self {
        Self { text, hash: Sha1::from(text).digest().to_string() }
    }

    /// A call by name, which the server answers with NOSCRIPT if it does not know the script.
    pub(crate) fn by_name(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.hash, key, arguments)
    }

    /// A call with the whole text, which makes the server know the script.
    pub(crate) fn in_full(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        call("EVAL", self.text, key, arguments)
    }
}

fn call(how: &str, script: &str, key: &str, arguments: &[&[u8]]) -> Cmd {
    let mut call = cmd(how);
    call.arg(script).arg(1).arg(key);
    for argument in arguments {
        call.arg(*argument);
    }
    call
}

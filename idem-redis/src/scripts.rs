//! The scripts: every step is one, takes one key, and looks before it writes.

use std::time::Duration;

use redis::{Cmd, Script, cmd};

/// A step in progress is judged by this clock, unless a test brings its own.
const CLOCK: &str = include_str!("scripts/clock.lua");

/// The longest lease or TTL. Longer ones are cut to it, since a Lua number holds no more.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The scripts of one store.
pub(crate) struct Scripts {
    pub(crate) begin: Text,
    pub(crate) renew: Text,
    pub(crate) complete: Text,
    pub(crate) release: Text,
    pub(crate) forget: Text,
}

/// One script, with the name that the server knows it by once it has seen it.
pub(crate) struct Text {
    text: String,
    hash: String,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self::with_clock(CLOCK)
    }

    /// The scripts on another clock: Lua that defines `now` and `milliseconds`.
    pub(crate) fn with_clock(clock: &str) -> Self {
        let text = |step| Text::new([clock, include_str!("scripts/value.lua"), step].concat());
        Self {
            begin: text(include_str!("scripts/begin.lua")),
            renew: text(include_str!("scripts/renew.lua")),
            complete: text(include_str!("scripts/complete.lua")),
            release: text(include_str!("scripts/release.lua")),
            forget: text(include_str!("scripts/forget.lua")),
        }
    }

    pub(crate) fn texts(&self) -> [&str; 5] {
        [&self.begin, &self.renew, &self.complete, &self.release, &self.forget].map(|script| &*script.text)
    }
}

impl Text {
    fn new(text: String) -> Self {
        let hash = Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }

    /// A call by name, which the server answers with NOSCRIPT if it does not know the script.
    pub(crate) fn by_name(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.hash, key, arguments)
    }

    /// A call with the whole text, which makes the server know the script.
    pub(crate) fn in_full(&self, key: &str, arguments: &[&[u8]]) -> Cmd {
        call("EVAL", &self.text, key, arguments)
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

/// A duration as the scripts take it: whole microseconds, rounded up.
pub(crate) fn microseconds(duration: Duration) -> String {
    duration.min(LONGEST).as_nanos().div_ceil(1000).to_string()
}

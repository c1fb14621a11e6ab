//! What happened, in order: written while a simulation runs, read by the checkers, kept as JSON lines.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One line of a history. The sequence is the order in which things happened; `at` is simulated time, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub seq: u64,
    pub at: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// Whose request it is, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestIdentity {
    pub tenant: String,
    /// Whose key it is by the policy of the endpoint: not the tenant's if the policy binds the caller otherwise.
    pub scope: String,
    pub key: String,
    /// What must be equal on a retry, readable.
    pub fp: String,
}

/// A response as a client sees it or a handler makes it. Bytes are kept as the characters of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A client sends a request.
    Req { id: u64, client: String, identity: RequestIdentity },
    /// A handler starts, on behalf of the request `req`. Its whole response holds its canary.
    Start { exec: u64, req: u64, identity: RequestIdentity, canary: String },
    /// A handler has its `n`th effect.
    Effect { exec: u64, n: u32 },
    /// A handler ends.
    End { exec: u64, response: SentResponse },
    /// A client gets a response.
    Resp { id: u64, replayed: bool, code: Option<String>, response: SentResponse },
    /// A client gives up. Whether the request had an effect is indeterminate.
    Lost { id: u64, why: String },
    /// A host stops at once, and forgets what it has in memory.
    Crash { node: String },
    /// Something goes wrong on purpose.
    Fault { what: String },
    /// From here on nothing goes wrong any more.
    Calm,
    /// A server starts, with a store that has room for this many places.
    Room { entries: usize },
    /// The server has shut down, and left this many executions behind.
    Drained { abandoned: usize },
    /// What the engine and its store hold when nothing is under way.
    Usage { entries: usize, executions: usize },
}

/// The host whose crash ends every window of a store in memory.
pub const SERVER: &str = "server";

/// The client that looks at each key when nothing goes wrong and no handler runs any more.
pub const LAST_LOOK: &str = "last-look";

/// A history that is being written. Clones write to the same one.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    lines: Vec<Line>,
    last_id: u64,
}

impl History {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an event. Hosts of one simulated tick run one after the other, each from the beginning of the tick; time is
    /// not allowed to go back between them.
    pub fn write(&self, at: Duration, event: Event) {
        let mut inner = self.inner();
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let at = inner.lines.last().map_or(at, |last| last.at.max(at));
        let seq = inner.lines.len() as u64;
        inner.lines.push(Line { seq, at, event });
    }

    /// A number that nothing else in this history has.
    pub fn id(&self) -> u64 {
        let mut inner = self.inner();
        inner.last_id += 1;
        inner.last_id
    }

    pub fn lines(&self) -> Vec<Line> {
        self.inner().lines.clone()
    }
}

/// The JSON lines of a history.
pub fn to_json(lines: &[Line]) -> String {
    lines.iter().map(|line| serde_json::to_string(line).unwrap_or_default() + "\n").collect()
}

/// A history from its JSON lines.
///
/// # Errors
/// If a line is no event.
pub fn from_json(text: &str) -> Result<Vec<Line>, serde_json::Error> {
    text.lines().map(serde_json::from_str).collect()
}

/// Writes a history to a file, and returns its path.
///
/// # Errors
/// If it cannot be written.
pub fn keep(name: &str, lines: &[Line]) -> io::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let folder = target.join("histories");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.jsonl"));
    fs::write(&path, to_json(lines))?;
    Ok(path)
}

/// Bytes as the characters of the same number, so that nothing is lost and text stays readable.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_survives_its_json_lines() {
        let history = History::default();
        let identity =
            RequestIdentity { tenant: "a".into(), scope: "a".into(), key: "k".into(), fp: "POST / {}".into() };
        let bytes: Vec<u8> = (0..=255).collect();
        let response =
            SentResponse { status: 201, headers: vec![("link".into(), latin1(b"\xff\n\"")); 2], body: latin1(&bytes) };
        history.write(Duration::from_nanos(5), Event::Req { id: 1, client: "c".into(), identity: identity.clone() });
        history.write(Duration::from_nanos(3), Event::Start { exec: 2, req: 1, identity, canary: "x".into() });
        history.write(Duration::from_nanos(7), Event::End { exec: 2, response: response.clone() });
        history.write(Duration::from_nanos(8), Event::Resp { id: 1, replayed: false, code: None, response });
        history.write(Duration::from_nanos(9), Event::Calm);
        let lines = history.lines();
        assert_eq!(lines.iter().map(|line| line.at).collect::<Vec<_>>(), [5, 5, 7, 8, 9], "time never goes back");
        let text = to_json(&lines);
        assert_eq!(text.lines().count(), lines.len());
        assert_eq!(from_json(&text).unwrap(), lines);
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error() {
        assert!(from_json("{\"seq\":0,\"at\":0,\"event\":\"party\"}\n").is_err());
    }
}

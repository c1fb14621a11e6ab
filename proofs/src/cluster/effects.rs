//! What bodies leave behind: a file of lines that survives the death of who wrote them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// What a handler did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was started.
    Start,
    /// It had its effect.
    Effect,
}

/// One line: what a handler did, for which key, in which execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was done.
    pub kind: Kind,
    /// The key of the request.
    pub key: String,
    /// The execution, which is another one each time the handler is started.
    pub execution: String,
}

/// The file, for the processes that write it.
#[derive(Debug)]
pub struct Effects(File);

impl Effects {
    /// Opens the file, which several processes may do.
    ///
    /// # Errors
    /// As for any file.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    /// Adds a line, in one piece: a process is killed before or after it.
    ///
    /// # Errors
    /// As for any file.
    pub fn add(&self, kind: Kind, key: &str, execution: &str) -> io::Result<()> {
        let kind = match kind {
            Kind::Start => "start",
            Kind::Effect => "effect",
        };
        (&self.0).write_all(format!("{kind} {key} {execution}\n").as_bytes())
    }
}

/// Everything that was written so far.
///
/// # Panics
/// If the file cannot be read, or a line is none.
pub fn read(path: &Path) -> Vec<Line> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    // A line that is being written is not there yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(parse).collect()
}

fn parse(line: &str) -> Line {
    let words: Vec<&str> = line.split(' ').collect();
    let (kind, key, execution) = match words[..] {
        ["start", key, execution] => (Kind::Start, key, execution),
        ["effect", key, execution] => (Kind::Effect, key, execution),
        _ => panic!("not a line of effects: {line}"),
    };
    Line { kind, key: key.to_owned(), execution: execution.to_owned() }
}

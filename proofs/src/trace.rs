//! Trace validation: the events of the engine, replayed as steps of a [model](crate::model).
//!
//! The engine reports each step of a claim, each handler that starts, each replay and each refusal, for operators.
//! [`Observer`] writes them down as [`Line`]s, and [`validate`] looks for an order in which the model takes the same steps. A run
//! that takes a step which the model lacks has none.

mod claims;
mod observe;
mod replay;
mod transactions;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use observe::Observer;
pub use replay::{UnexplainedKey, validate};

/// What the engine reported of one request.
///
/// The place of a line in a trace is its time: a step of the store lies between the line of its request before it and its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The process, or the life of a process that was started again.
    pub process: u64,
    /// The request, within its process.
    pub request: u64,
    /// What operators see of the storage key.
    pub key: String,
    /// What was reported.
    pub event: Event,
}

/// What the engine reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The request is about to ask the store.
    Asked,
    /// The store granted a claim.
    Granted,
    /// The store let an abandoned claim be taken over.
    TakenOver,
    /// The handler starts, as this execution.
    Started(String),
    /// The store confirmed a record.
    Completed,
    /// The store confirmed that the key is free again.
    Released,
    /// The claim was no longer the request's when it was to end.
    Lost,
    /// The store never confirmed the end of the claim.
    Unconfirmed,
    /// The request gets a replay of this execution.
    Replayed(String),
    /// The request is refused with this code.
    Refused(String),
}

/// Where lines are written. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Sink>);

#[derive(Debug)]
struct Sink {
    process: AtomicU64,
    output: Output,
}

#[derive(Debug)]
enum Output {
    Memory(Mutex<Vec<Line>>),
    File(File),
}

impl Trace {
    /// A trace in memory, of a process with the number 0.
    pub fn in_memory() -> Self {
        Self(Arc::new(Sink { process: AtomicU64::new(0), output: Output::Memory(Mutex::default()) }))
    }

    /// A trace that this process appends to a file, as other processes may: each line in one piece, so that a process is killed
    /// before or after it, and the order of the file is an order in time.
    ///
    /// # Errors
    /// As for any file.
    pub fn append(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(Sink { process: AtomicU64::new(std::process::id().into()), output: Output::File(file) })))
    }

    /// The process starts again: what it writes from now on is of another one.
    pub fn next_process(&self) {
        self.0.process.fetch_add(1, Ordering::Relaxed);
    }

    /// The lines of a trace in memory.
    pub fn lines(&self) -> Vec<Line> {
        match &self.0.output {
            Output::Memory(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Output::File(_) => Vec::new(),
        }
    }

    fn process(&self) -> u64 {
        self.0.process.load(Ordering::Relaxed)
    }

    fn write(&self, line: Line) {
        match &self.0.output {
            Output::Memory(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).push(line),
            Output::File(file) => {
                let line = serde_json::to_string(&line).unwrap_or_default() + "\n";
                // A trace with a hole would accuse the engine.
                let mut file = file;
                file.write_all(line.as_bytes()).expect("the trace takes a line");
            }
        }
    }
}

/// The trace of each process, for stores that die with it.
pub fn by_process(lines: &[Line]) -> Vec<Vec<Line>> {
    lines
        .iter()
        .fold(BTreeMap::<u64, Vec<Line>>::new(), |mut processes, line| {
            processes.entry(line.process).or_default().push(line.clone());
            processes
        })
        .into_values()
        .collect()
}

/// Reads the lines of a file that [`Trace::append`] wrote.
///
/// # Errors
/// If the file cannot be read, or a line is none.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| serde_json::from_str(line).map_err(io::Error::other)).collect()
}

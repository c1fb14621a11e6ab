//! What clients were told, what handlers did, and whether the two agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::cluster::effects::{Kind, Line};
use crate::trace;

/// One operation: a key, and what its client was told.
#[derive(Clone, Debug, Default)]
pub struct Operation {
    /// The key.
    pub key: String,
    /// The execution that each response came from.
    pub responses: Vec<String>,
    /// Whether the client was told that the outcome is unknown.
    pub unknown: bool,
    /// Responses that no client should get.
    pub surprises: Vec<String>,
    /// How many requests were sent, but for those of which the response was not awaited.
    pub requests: usize,
    /// How often the client hung up.
    pub hang_ups: usize,
    /// How many responses were marked as replays.
    pub replays: usize,
    /// How often the key was in flight.
    pub locked: usize,
    /// How often the store could not be reached.
    pub unavailable: usize,
    /// How often the connection broke.
    pub broken: usize,
}

impl Operation {
    /// An operation of which nothing is known.
    pub fn new(key: String) -> Self {
        Self { key, ..Self::default() }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Findings {
    /// What clients were told.
    pub operations: Vec<Operation>,
    /// What handlers did.
    pub lines: Vec<Line>,
    /// What the engines reported.
    pub trace: Vec<trace::Line>,
    /// The keys that were still in flight one lease after the last fault, and what the client got instead of a response.
    pub unsettled: Vec<(String, String)>,
    /// How many processes were killed, and others started in their place.
    pub kills: usize,
    /// How long the run took.
    pub took: Duration,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A handler was started, or had its effect, more than once.
    Twice(Kind, String),
    /// Something was done for a key that no client asked for.
    Unasked(String),
    /// The client neither got a response nor was told that the outcome is unknown.
    NoResponse(String),
    /// The client got responses of different executions.
    TwoResponses(String),
    /// A response, but no effect of the execution that it is said to come from.
    NoEffect(String),
    /// A response that no client should get.
    Surprise(String, String),
    /// The key was not recorded, free or reported unknown one lease after the last fault.
    Unsettled(String, String),
}

impl Findings {
    /// Everything that must not be if `abandoned = refuse`.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let asked: BTreeSet<&str> = self.operations.iter().map(|operation| operation.key.as_str()).collect();
        for kind in [Kind::Start, Kind::Effect] {
            for (key, executions) in self.executions(kind) {
                if executions.len() > 1 {
                    faults.push(Fault::Twice(kind, key.to_owned()));
                }
                if !asked.contains(key) {
                    faults.push(Fault::Unasked(key.to_owned()));
                }
            }
        }
        faults.extend(self.unsettled.iter().cloned().map(|(key, got)| Fault::Unsettled(key, got)));
        let effects = self.executions(Kind::Effect);
        for Operation { key, responses, unknown, surprises, .. } in &self.operations {
            faults.extend(surprises.iter().map(|surprise| Fault::Surprise(key.clone(), surprise.clone())));
            if responses.is_empty() && !unknown {
                faults.push(Fault::NoResponse(key.clone()));
            }
            if responses.windows(2).any(|two| two[0] != two[1]) {
                faults.push(Fault::TwoResponses(key.clone()));
            }
            let had_effect =
                |response| effects.get(key.as_str()).is_some_and(|executions| executions.contains(&response));
            if !responses.iter().all(|response| had_effect(response.as_str())) {
                faults.push(Fault::NoEffect(key.clone()));
            }
        }
        faults
    }

    /// The effects that there were.
    pub fn effects(&self) -> usize {
        self.lines.iter().filter(|line| line.kind == Kind::Effect).count()
    }

    /// The operations whose client was told that the outcome is unknown and got no response; and those of them that had
    /// no effect.
    pub fn unknown(&self) -> (usize, usize) {
        let effects = self.executions(Kind::Effect);
        let unknown = self.operations.iter().filter(|operation| operation.unknown && operation.responses.is_empty());
        let (all, without): (Vec<_>, Vec<_>) =
            unknown.map(|operation| ((), (!effects.contains_key(operation.key.as_str())).then_some(()))).unzip();
        (all.len(), without.into_iter().flatten().count())
    }

    /// The executions of each key that did this, one mention for each time.
    fn executions(&self, kind: Kind) -> BTreeMap<&str, Vec<&str>> {
        let mut executions = BTreeMap::<_, Vec<_>>::new();
        for line in self.lines.iter().filter(|line| line.kind == kind) {
            executions.entry(line.key.as_str()).or_default().push(line.execution.as_str());
        }
        executions
    }

    fn sum(&self, of: impl Fn(&Operation) -> usize) -> usize {
        self.operations.iter().map(of).sum()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unknown, without) = self.unknown();
        write!(
            f,
            "{} operations, {} kills, {:.1} s; {} effects, {unknown} unknown, {without} of them without an effect; {} \
             requests, {} hang-ups, {} replays, {} in flight, {} without a store, {} broken",
            self.operations.len(),
            self.kills,
            self.took.as_secs_f64(),
            self.effects(),
            self.sum(|operation| operation.requests),
            self.sum(|operation| operation.hang_ups),
            self.sum(|operation| operation.replays),
            self.sum(|operation| operation.locked),
            self.sum(|operation| operation.unavailable),
            self.sum(|operation| operation.broken),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: Kind, key: &str, execution: &str) -> Line {
        Line { kind, key: key.to_owned(), execution: execution.to_owned() }
    }

    /// One operation that went well, and another of which the client does not know how it went.
    fn good() -> Findings {
        let known = Operation { responses: vec!["a".to_owned(); 2], ..Operation::new("one".to_owned()) };
        let unknown = Operation { unknown: true, ..Operation::new("two".to_owned()) };
        let lines = [(Kind::Start, "one", "a"), (Kind::Effect, "one", "a"), (Kind::Start, "two", "b")];
        Findings {
            operations: vec![known, unknown],
            lines: lines.map(|(kind, key, execution)| line(kind, key, execution)).to_vec(),
            trace: Vec::new(),
            unsettled: Vec::new(),
            kills: 1,
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_agrees_has_no_fault() {
        assert_eq!(good().faults(), []);
        assert_eq!((good().effects(), good().unknown()), (1, (1, 1)));
    }

    #[test]
    fn each_fault_is_found() {
        let faults = |change: fn(&mut Findings)| {
            let mut findings = good();
            change(&mut findings);
            findings.faults()
        };
        let one = || "one".to_owned();
        assert_eq!(faults(|run| run.lines.push(line(Kind::Start, "one", "c"))), [Fault::Twice(Kind::Start, one())]);
        assert_eq!(faults(|run| run.lines.push(line(Kind::Effect, "one", "a"))), [Fault::Twice(Kind::Effect, one())]);
        assert_eq!(faults(|run| run.lines.push(line(Kind::Start, "three", "c"))), [Fault::Unasked("three".to_owned())]);
        assert_eq!(faults(|run| run.operations[1].unknown = false), [Fault::NoResponse("two".to_owned())]);
        assert_eq!(
            faults(|run| run.operations[0].responses.push("b".to_owned())),
            [Fault::TwoResponses(one()), Fault::NoEffect(one())]
        );
        assert_eq!(faults(|run| drop(run.lines.remove(1))), [Fault::NoEffect(one())]);
        assert_eq!(
            faults(|run| run.unsettled.push(("one".to_owned(), "locked".to_owned()))),
            [Fault::Unsettled(one(), "locked".to_owned())]
        );
        assert_eq!(
            faults(|run| run.operations[0].surprises.push("500".to_owned())),
            [Fault::Surprise(one(), "500".to_owned())]
        );
    }
}

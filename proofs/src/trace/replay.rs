//! The search for an order in which the model takes the steps of a trace.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use idem_runtime::codes;
use stateright::Model;

use super::{Event, Line};
use crate::model::{Abandoned, Action, Answer, Protocol, Slot, State, Step};

/// A key whose trace is no run of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// The key.
    pub key: String,
    /// The first line that no order explains, and its place in the trace.
    pub line: (usize, Line),
    /// The model's state before it, in the order that came furthest.
    pub state: String,
    /// All lines of the key.
    pub story: String,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, line: (place, line), state, story } = self;
        let (process, request, event) = (line.process, line.request, &line.event);
        writeln!(f, "key {key}: the model has no step for line {place}, {event:?} of request {process}/{request}")?;
        writeln!(f, "  in the state {state}")?;
        write!(f, "{story}")
    }
}

/// Looks at each key of the trace for an order of its steps that is a run of the model, and returns the keys that have none.
///
/// `protocol` says what may go wrong; how many attempts there are is read from the trace. Steps of which the engine cannot know are
/// added as needed, if `protocol` has them: the end of a lease, an owner that is slow, the death of one, and what the store did
/// for a request that did not hear of it.
pub fn validate(protocol: &Protocol, lines: &[Line]) -> Vec<Unexplained> {
    let mut keys = BTreeMap::<&str, Vec<(usize, &Line)>>::new();
    let mut ends = HashMap::new();
    for (place, line) in lines.iter().enumerate() {
        keys.entry(&line.key).or_default().push((place, line));
        ends.insert(line.process, place);
    }
    keys.into_values().filter_map(|lines| Search::of(protocol, &lines, &ends).run()).collect()
}

/// One request of a key.
struct Request<'a> {
    lines: Vec<(usize, &'a Line)>,
    /// The last line of its process, before which the process cannot have died.
    process_ends: usize,
    /// It was told that the store is unavailable, so that a claim it did not hear of may be released behind it.
    gave_up: bool,
}

impl Request<'_> {
    /// Its line before the next one lies before the first line that is not explained, so that it may take a step here.
    fn reached(&self, explained: usize, next: usize) -> bool {
        self.lines[explained - 1].0 < next
    }

    /// The store may have done more than it told the request, before its process died or it gave up.
    fn is_silent(&self, explained: usize) -> bool {
        let next = self.lines.get(explained).map(|(_, line)| &line.event);
        next.is_none_or(|event| *event == Event::Unconfirmed || event.gives_up())
    }
}

impl Event {
    /// The request does not learn what the store did.
    fn gives_up(&self) -> bool {
        matches!(self, Self::Refused(code) if code == codes::STORE_UNAVAILABLE)
    }
}

struct Search<'a> {
    protocol: Protocol,
    lines: Vec<(usize, &'a Line)>,
    requests: Vec<Request<'a>>,
    /// The request of each execution.
    executions: HashMap<&'a str, usize>,
    visited: HashSet<Node>,
}

/// How many lines of each request have been explained, and the state that they led to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Node {
    explained: Vec<usize>,
    state: State,
}

impl<'a> Search<'a> {
    fn of(protocol: &Protocol, lines: &[(usize, &'a Line)], ends: &HashMap<u64, usize>) -> Self {
        let mut numbers = HashMap::new();
        let mut requests = Vec::<Request<'a>>::new();
        let mut executions = HashMap::new();
        for &(place, line) in lines {
            let number = *numbers.entry((line.process, line.request)).or_insert_with(|| {
                requests.push(Request { lines: Vec::new(), process_ends: ends[&line.process], gave_up: false });
                requests.len() - 1
            });
            let request = &mut requests[number];
            request.lines.push((place, line));
            match &line.event {
                Event::Started(execution) => drop(executions.insert(&**execution, number)),
                event => request.gave_up |= event.gives_up(),
            }
        }
        let protocol = Protocol { attempts: requests.len(), ..protocol.clone() };
        Self { protocol, lines: lines.to_vec(), requests, executions, visited: HashSet::new() }
    }

    /// Depth first, until no line is left to explain. A node that has been visited leads nowhere.
    fn run(mut self) -> Option<Unexplained> {
        // The first line of each request says that it asks, which is no step.
        let start = Node {
            explained: vec![1; self.requests.len()],
            state: self.protocol.init_states().pop().expect("the model has a first state"),
        };
        let mut furthest = (0, start.clone());
        let mut open = vec![start];
        while let Some(node) = open.pop() {
            if !self.visited.insert(node.clone()) {
                continue;
            }
            let next = self.next_line(&node)?;
            let explained = node.explained.iter().sum();
            if furthest.0 < explained {
                furthest = (explained, node.clone());
            }
            // What was seen comes last, so that it is tried first, the earliest line before the others.
            open.extend(self.unseen(&node, next));
            let seen = self.seen(&node, next);
            open.extend(seen.into_iter().rev());
        }
        Some(self.unexplained(&furthest.1))
    }

    /// The place of the first line that is not explained.
    fn next_line(&self, node: &Node) -> Option<usize> {
        let next =
            |(request, &explained): (&Request<'_>, &usize)| request.lines.get(explained).map(|(place, _)| *place);
        self.requests.iter().zip(&node.explained).filter_map(next).min()
    }

    /// The nodes after one more line, the earliest line first. Its step lies after the line of its request before it, so that each
    /// line up to there must have been explained.
    fn seen(&self, node: &Node, next: usize) -> Vec<Node> {
        let mut nodes = Vec::new();
        for (me, (request, &explained)) in self.requests.iter().zip(&node.explained).enumerate() {
            let Some((place, line)) = request.lines.get(explained) else { continue };
            if request.reached(explained, next)
                && let Some(state) = self.explain(&node.state, me, &line.event)
            {
                let mut node = Node { explained: node.explained.clone(), state };
                node.explained[me] += 1;
                nodes.push((*place, node));
            }
        }
        nodes.sort_by_key(|(place, _)| *place);
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// The nodes after steps of which the engine cannot know. Each changes what is in the store: others explain no line.
    fn unseen(&self, node: &Node, next: usize) -> Vec<Node> {
        let state = &node.state;
        let mut states = Vec::new();
        if let Slot::Claim { owner, live } = state.slot {
            states.extend(self.step(state, Action::LeaseEnds));
            let (request, explained) = (&self.requests[owner], node.explained[owner]);
            if request.reached(explained, next) {
                // Its owner was slow, or died.
                states.extend(self.steps(state, &[Action::Pause(owner), Action::LeaseEnds, Action::Resume(owner)]));
                states.extend(self.step(state, Action::Renew(owner)));
                if explained == request.lines.len() && request.process_ends < next {
                    states.extend(self.steps(state, &[Action::Crash(owner), Action::LeaseEnds]));
                }
                if request.is_silent(explained) {
                    states.extend(self.step(state, Action::CompleteLosesAck(owner)));
                }
                if request.gave_up && live {
                    states.extend(self.release_late(state, owner));
                }
            }
        }
        if !matches!(state.slot, Slot::Record(_) | Slot::Claim { live: true, .. }) {
            for (me, (request, &explained)) in self.requests.iter().zip(&node.explained).enumerate() {
                if request.reached(explained, next) && request.is_silent(explained) {
                    let claimed = self.step(state, Action::BeginLosesAck(me));
                    states.extend(claimed.filter(|claimed| claimed.slot != state.slot));
                }
            }
        }
        states.into_iter().map(|state| Node { explained: node.explained.clone(), state }).collect()
    }

    /// A claim is released that its request did not hear of.
    fn release_late(&self, state: &State, me: usize) -> Option<State> {
        self.steps(state, &[Action::Begin(me), Action::Release(me)])
    }

    /// Takes a step that the model allows here.
    fn step(&self, state: &State, action: Action) -> Option<State> {
        let mut actions = Vec::new();
        self.protocol.actions(state, &mut actions);
        actions.contains(&action).then(|| self.protocol.next_state(state, action)).flatten()
    }

    fn steps(&self, state: &State, actions: &[Action]) -> Option<State> {
        actions.iter().try_fold(state.clone(), |state, action| self.step(&state, *action))
    }

    /// The state after what was reported of a request, if the model can take that step.
    fn explain(&self, state: &State, me: usize, event: &Event) -> Option<State> {
        let now = state.attempts[me].step;
        let owns = matches!(state.slot, Slot::Claim { owner, .. } if owner == me);
        let becomes = |action, step| self.step(state, action).filter(|next| next.attempts[me].step == step);
        match event {
            Event::Asked => None,
            Event::Granted if state.slot == Slot::Free || owns => becomes(Action::Begin(me), Step::Claimed),
            Event::TakenOver if self.protocol.abandoned == Abandoned::Rerun && state.slot != Slot::Free => {
                becomes(Action::Begin(me), Step::Claimed)
            }
            Event::Granted | Event::TakenOver => None,
            Event::Started(_) => self.step(state, Action::Effect(me)),
            Event::Completed if owns || state.slot == Slot::Record(me) => self.step(state, Action::Complete(me)),
            Event::Completed => None,
            Event::Released if now == Step::Asking => {
                // A claim that was granted too late.
                let granted = if owns { state.clone() } else { self.step(state, Action::BeginLosesAck(me))? };
                self.release_late(&granted, me)
            }
            Event::Released if owns => self.step(state, Action::Release(me)),
            Event::Released => None,
            Event::Lost if !owns && now == Step::Ran => self.step(state, Action::Complete(me)),
            Event::Lost => None,
            // Nothing is known of the store.
            Event::Unconfirmed => (now == Step::Ran).then(|| state.clone()),
            Event::Replayed(execution) => {
                becomes(Action::Begin(me), Step::Answered(Answer::From(*self.executions.get(&**execution)?)))
            }
            Event::Refused(code) => self.refused(state, me, code),
        }
    }

    /// Refusals that change nothing must be true of the state.
    fn refused(&self, state: &State, me: usize, code: &str) -> Option<State> {
        let now = state.attempts[me].step;
        let is_so = match code {
            codes::OUTCOME_UNKNOWN if now == Step::Answered(Answer::Unknown) => true,
            codes::OUTCOME_UNKNOWN => {
                let next = self.step(state, Action::Begin(me))?;
                return (next.attempts[me].step == Step::Answered(Answer::Unknown)).then_some(next);
            }
            codes::KEY_LOCKED => {
                now == Step::Asking && matches!(state.slot, Slot::Claim { owner, live: true } if owner != me)
            }
            // The model has one fingerprint. Whatever the other one is, a free key is granted.
            codes::KEY_MISMATCH | codes::POLICY_CHANGED => now == Step::Asking && state.slot != Slot::Free,
            codes::NOT_REPLAYABLE => now == Step::Asking && matches!(state.slot, Slot::Record(_)),
            codes::STORE_FULL => now == Step::Asking && state.slot == Slot::Free,
            // Its claim is released before or after this.
            codes::TOO_MANY_EXECUTIONS => matches!(now, Step::Claimed | Step::Answered(Answer::Refused)),
            codes::STORE_UNAVAILABLE => matches!(now, Step::Asking | Step::Answered(Answer::Refused)),
            _ => false,
        };
        is_so.then(|| state.clone())
    }

    fn unexplained(&self, furthest: &Node) -> Unexplained {
        let next = self.next_line(furthest).expect("a line is left");
        let line = self.lines.iter().find(|(place, _)| *place == next).expect("it is a line of the key");
        let attempts = furthest.state.attempts.iter().zip(&self.requests).map(|(attempt, request)| {
            let Line { process, request, .. } = request.lines[0].1;
            format!("{process}/{request} {:?}", attempt.step)
        });
        let slot = match furthest.state.slot {
            Slot::Free => "free".to_owned(),
            Slot::Claim { owner, live } => {
                format!("claimed by {}, {}", self.name(owner), if live { "live" } else { "abandoned" })
            }
            Slot::Record(owner) => format!("recorded by {}", self.name(owner)),
        };
        let story = self
            .lines
            .iter()
            .map(|(place, line)| format!("  {place:>6} {}/{} {:?}\n", line.process, line.request, line.event));
        Unexplained {
            key: line.1.key.clone(),
            line: (next, line.1.clone()),
            state: format!("{slot}; {}", attempts.collect::<Vec<_>>().join(", ")),
            story: story.collect(),
        }
    }

    fn name(&self, me: usize) -> String {
        let Line { process, request, .. } = self.requests[me].lines[0].1;
        format!("{process}/{request}")
    }
}

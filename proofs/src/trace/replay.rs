//! The search for an order in which a model takes the steps of a trace.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;

use idem_runtime::codes;
use stateright::Model;

use super::{Event, Line};

/// A key whose trace is no run of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnexplainedKey {
    /// The key.
    pub key: String,
    /// The first line that no order explains, and its place in the trace.
    pub line: (usize, Line),
    /// The model's state before it, in the order that came furthest.
    pub state: String,
    /// All lines of the key.
    pub trace: String,
}

impl fmt::Display for UnexplainedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, line: (place, line), state, trace } = self;
        let (process, request, event) = (line.process, line.request, &line.event);
        writeln!(f, "key {key}: the model has no step for line {place}, {event:?} of request {process}/{request}")?;
        writeln!(f, "  in the state {state}")?;
        write!(f, "{trace}")
    }
}

/// A model whose steps are reported by the engine.
pub trait Traced: Model<State: Clone + Eq + Hash, Action: PartialEq> {
    /// The same model, of this many requests.
    fn with_requests(&self, requests: usize) -> Self;

    /// Returns the state after what was reported of a request, if the model can take that step.
    fn explain(&self, trace: &KeyTrace<'_>, state: &Self::State, me: usize, event: &Event) -> Option<Self::State>;

    /// Returns the states after steps of which the engine cannot know. Each changes what is in the store: others explain no line.
    fn unseen(&self, trace: &KeyTrace<'_>, progress: &Progress<'_>, state: &Self::State) -> Vec<Self::State>;

    /// Describes a state to a reader.
    fn describe(trace: &KeyTrace<'_>, state: &Self::State) -> String;

    /// Takes a step that the model allows here.
    fn step(&self, state: &Self::State, action: Self::Action) -> Option<Self::State> {
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        actions.contains(&action).then(|| self.next_state(state, action)).flatten()
    }

    /// Takes several steps.
    fn steps<const N: usize>(&self, state: &Self::State, actions: [Self::Action; N]) -> Option<Self::State> {
        actions.into_iter().try_fold(state.clone(), |state, action| self.step(&state, action))
    }
}

/// Looks at each key of the trace for an order of its steps that is a run of the model, and returns the keys that have none.
///
/// `model` says what may go wrong; how many requests there are is read from the trace. Steps of which the engine cannot know are
/// added as needed, if `model` has them: the end of a lease, an owner that is slow, the death of one, and what the store did
/// for a request that did not hear of it.
pub fn validate<M: Traced>(model: &M, lines: &[Line]) -> Vec<UnexplainedKey> {
    let mut keys = BTreeMap::<&str, Vec<(usize, &Line)>>::new();
    let mut ends = HashMap::new();
    for (place, line) in lines.iter().enumerate() {
        keys.entry(&line.key).or_default().push((place, line));
        ends.insert(line.process, place);
    }
    let search = |lines: Vec<_>| {
        let trace = KeyTrace::of(&lines, &ends);
        Search { model: model.with_requests(trace.requests.len()), trace, visited: HashSet::new() }.run()
    };
    keys.into_values().filter_map(search).collect()
}

/// One request of a key.
struct Request<'a> {
    lines: Vec<(usize, &'a Line)>,
    /// The last line of its process, before which the process cannot have died.
    process_ends: usize,
    /// It was told that the store is unavailable.
    gave_up: bool,
}

impl Event {
    /// The request does not learn what the store did.
    fn gives_up(&self) -> bool {
        matches!(self, Self::Refused(code) if code == codes::STORE_UNAVAILABLE)
    }
}

/// What was reported of a key.
pub struct KeyTrace<'a> {
    lines: Vec<(usize, &'a Line)>,
    requests: Vec<Request<'a>>,
    /// The request of each execution.
    executions: HashMap<&'a str, usize>,
}

impl<'a> KeyTrace<'a> {
    fn of(lines: &[(usize, &'a Line)], ends: &HashMap<u64, usize>) -> Self {
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
        Self { lines: lines.to_vec(), requests, executions }
    }

    /// Returns the request of an execution.
    pub fn request_of(&self, execution: &str) -> Option<usize> {
        self.executions.get(execution).copied()
    }

    /// Returns whether the request was told that the store is unavailable, so that a claim it did not hear of may be released
    /// behind it.
    pub fn gave_up(&self, me: usize) -> bool {
        self.requests[me].gave_up
    }

    /// Returns whether nothing was reported of the request but that it asked: its client hung up, or its process died.
    pub fn only_asked(&self, me: usize) -> bool {
        self.requests[me].lines.len() == 1
    }

    /// Returns whether the request asked while another one of its process was asking.
    pub fn is_second(&self, me: usize) -> bool {
        let my_lines = &self.requests[me].lines;
        let &(asked, Line { process, .. }) = &my_lines[0];
        let told = my_lines.get(1).map_or(usize::MAX, |(place, _)| *place);
        self.requests.iter().any(|other| {
            let is_told_after = other.lines.get(1).is_none_or(|(place, _)| *place > asked);
            other.lines[0].1.process == *process
                && other.lines[0].0 != asked
                && other.lines[0].0 < told
                && is_told_after
        })
    }

    /// Returns the name of a request.
    pub fn name(&self, me: usize) -> String {
        let Line { process, request, .. } = self.requests[me].lines[0].1;
        format!("{process}/{request}")
    }
}

/// How far the lines of a key have been explained.
pub struct Progress<'a> {
    trace: &'a KeyTrace<'a>,
    /// How many lines of each request.
    explained: &'a [usize],
    /// The place of the first line that is not.
    next: usize,
}

impl Progress<'_> {
    /// Returns whether the line of the request before its next one is explained, and all before that, so that it may take a step.
    pub fn reached(&self, me: usize) -> bool {
        self.trace.requests[me].lines[self.explained[me] - 1].0 < self.next
    }

    /// Returns whether the store may have done more than it told the request, before its process died, it gave up, or it released a
    /// claim that was granted too late.
    pub fn is_silent(&self, me: usize) -> bool {
        let explained = self.explained[me];
        let next = self.trace.requests[me].lines.get(explained).map(|(_, line)| &line.event);
        // What it loses before it was granted anything was granted too late.
        let is_late = explained == 1 && next == Some(&Event::Lost);
        is_late || next.is_none_or(|event| matches!(event, Event::Unconfirmed | Event::Released) || event.gives_up())
    }

    /// Returns whether the process of the request may have died.
    pub fn may_be_dead(&self, me: usize) -> bool {
        let request = &self.trace.requests[me];
        self.explained[me] == request.lines.len() && request.process_ends < self.next
    }
}

/// How many lines of each request have been explained, and the state that they led to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Node<S> {
    explained: Vec<usize>,
    state: S,
}

struct Search<'a, M: Traced> {
    model: M,
    trace: KeyTrace<'a>,
    visited: HashSet<Node<M::State>>,
}

impl<M: Traced> Search<'_, M> {
    /// Depth first, until no line is left to explain. A node that has been visited leads nowhere.
    fn run(mut self) -> Option<UnexplainedKey> {
        // The first line of each request says that it asks, which is no step.
        let start = Node {
            explained: vec![1; self.trace.requests.len()],
            state: self.model.init_states().pop().expect("the model has a first state"),
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
            let progress = Progress { trace: &self.trace, explained: &node.explained, next };
            // What was seen comes last, so that it is tried first, the earliest line before the others.
            let unseen = self.model.unseen(&self.trace, &progress, &node.state).into_iter();
            open.extend(unseen.map(|state| Node { explained: node.explained.clone(), state }));
            open.extend(self.seen(&node, &progress).into_iter().rev());
        }
        Some(self.unexplained(&furthest.1))
    }

    /// The place of the first line that is not explained.
    fn next_line(&self, node: &Node<M::State>) -> Option<usize> {
        let next =
            |(request, &explained): (&Request<'_>, &usize)| request.lines.get(explained).map(|(place, _)| *place);
        self.trace.requests.iter().zip(&node.explained).filter_map(next).min()
    }

    /// The nodes after one more line, the earliest line first. Its step lies after the line of its request before it, so that each
    /// line up to there must have been explained.
    fn seen(&self, node: &Node<M::State>, progress: &Progress<'_>) -> Vec<Node<M::State>> {
        let mut nodes = Vec::new();
        for (me, (request, &explained)) in self.trace.requests.iter().zip(&node.explained).enumerate() {
            let Some((place, line)) = request.lines.get(explained) else { continue };
            if progress.reached(me)
                && let Some(state) = self.model.explain(&self.trace, &node.state, me, &line.event)
            {
                let mut node = Node { explained: node.explained.clone(), state };
                node.explained[me] += 1;
                nodes.push((*place, node));
            }
        }
        nodes.sort_by_key(|(place, _)| *place);
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    fn unexplained(&self, furthest: &Node<M::State>) -> UnexplainedKey {
        let next = self.next_line(furthest).expect("a line is left");
        let lines = &self.trace.lines;
        let line = lines.iter().find(|(place, _)| *place == next).expect("it is a line of the key");
        let trace = lines
            .iter()
            .map(|(place, line)| format!("  {place:>6} {}/{} {:?}\n", line.process, line.request, line.event));
        UnexplainedKey {
            key: line.1.key.clone(),
            line: (next, line.1.clone()),
            state: M::describe(&self.trace, &furthest.state),
            trace: trace.collect(),
        }
    }
}

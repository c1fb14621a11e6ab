//! What must hold of every history, whatever went wrong in it.
//!
//! A window is what lies between two crashes of the server: with a store in memory a crash forgets everything. A client
//! that gave up knows nothing, so no check draws a conclusion from it. Every check has a bad history in the tests
//! that it catches.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::history::{Event, Line, RequestIdentity, SERVER, SentResponse};

mod executions;
mod responses;
#[cfg(test)]
mod tests;

/// An invariant that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The number of the invariant.
    pub invariant: &'static str,
    pub seq: u64,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at line {}: {}", self.invariant, self.seq, self.text)
    }
}

/// How long a response may take once nothing goes wrong any more.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the request to the response, the handler and every wait included.
    pub response: Duration,
    /// From the end of the handler, or from the request if that is later, to the replay.
    pub replay: Duration,
}

/// What is wrong, and in which line.
type Findings = Vec<(u64, String)>;

/// A check, with the number of its invariant.
type Check = (&'static str, fn(&ParsedHistory<'_>) -> Findings);

/// One lease after the last fault each key is recorded, free, or reported unknown.
pub const SETTLED: &str = "I27 settled";

const CHECKS: &[Check] = &[
    ("I0 well-formed", executions::well_formed),
    ("I1 at most one at a time", executions::one_at_a_time),
    ("I2 at most once", executions::at_most_once),
    ("I4 effect bound", executions::one_effect),
    ("I7 replay identity", responses::replays_are_identical),
    ("I8 first = replay", responses::first_responses_are_the_recorded_ones),
    ("I9 single source", responses::single_source),
    ("I10 mismatch", responses::mismatch),
    ("I11 isolation", responses::isolation),
    ("I13 bounded", executions::bounded),
    ("I14 conservation", executions::conservation),
    ("I17 to the end", executions::to_the_end),
    ("I17 recorded", responses::recorded),
    ("I22 fail closed", executions::fail_closed),
    ("I24 liveness", responses::liveness),
    ("I26 shutdown", executions::shutdown),
    (SETTLED, responses::settled),
];

/// Everything in the history that must not be, in the order of the invariants.
pub fn check(lines: &[Line], bounds: Bounds) -> Vec<Violation> {
    let history = ParsedHistory::read(lines, bounds);
    let violations = CHECKS.iter().flat_map(|&(invariant, check)| {
        check(&history).into_iter().map(move |(seq, text)| Violation { invariant, seq, text })
    });
    violations.collect()
}

/// Whose key, and which: the storage key.
type ScopedKey<'a> = (&'a str, &'a str);

/// When something happened.
#[derive(Clone, Copy, Debug)]
struct Moment {
    seq: u64,
    at: u64,
    window: usize,
}

/// A request and what the client learned of it.
struct Request<'a> {
    sent: Moment,
    client: &'a str,
    identity: &'a RequestIdentity,
    /// `None` while nothing is known.
    outcome: Option<(Moment, Outcome<'a>)>,
}

enum Outcome<'a> {
    Responded { replayed: bool, code: Option<&'a str>, response: &'a SentResponse },
    Lost,
}

/// One run of a handler.
struct Execution<'a> {
    started: Moment,
    req: u64,
    identity: &'a RequestIdentity,
    canary: &'a str,
    ended: Option<(Moment, &'a SentResponse)>,
}

/// A history by its requests and executions.
struct ParsedHistory<'a> {
    lines: &'a [Line],
    bounds: Bounds,
    requests: BTreeMap<u64, Request<'a>>,
    executions: BTreeMap<u64, Execution<'a>>,
    /// When nothing went wrong any more.
    calm: Option<Moment>,
    last: Moment,
}

/// A response that a client got, with the request it belongs to.
struct ReceivedResponse<'s> {
    id: u64,
    identity: &'s RequestIdentity,
    sent: Moment,
    got: Moment,
    replayed: bool,
    code: Option<&'s str>,
    response: &'s SentResponse,
}

impl<'a> ParsedHistory<'a> {
    fn read(lines: &'a [Line], bounds: Bounds) -> Self {
        let last = Moment { seq: 0, at: 0, window: 0 };
        let mut history =
            Self { lines, bounds, requests: BTreeMap::new(), executions: BTreeMap::new(), calm: None, last };
        for Line { seq, at, event } in lines {
            let now = Moment { seq: *seq, at: *at, window: history.last.window };
            history.last = now;
            match event {
                Event::Req { id, client, identity } => {
                    history.requests.entry(*id).or_insert(Request { sent: now, client, identity, outcome: None });
                }
                Event::Start { exec, req, identity, canary } => {
                    let execution = Execution { started: now, req: *req, identity, canary, ended: None };
                    history.executions.entry(*exec).or_insert(execution);
                }
                Event::End { exec, response } => {
                    if let Some(execution) = history.executions.get_mut(exec) {
                        execution.ended.get_or_insert((now, response));
                    }
                }
                Event::Resp { id, replayed, code, response } => {
                    let outcome = Outcome::Responded { replayed: *replayed, code: code.as_deref(), response };
                    history.learn(*id, now, outcome);
                }
                Event::Lost { id, .. } => history.learn(*id, now, Outcome::Lost),
                Event::Crash { node } if node == SERVER => history.last.window += 1,
                Event::Calm => history.calm = Some(now),
                _ => {}
            }
        }
        history
    }

    fn learn(&mut self, id: u64, now: Moment, outcome: Outcome<'a>) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.outcome.get_or_insert((now, outcome));
        }
    }

    /// The responses that clients got.
    fn given(&self) -> impl Iterator<Item = ReceivedResponse<'_>> {
        self.requests.iter().filter_map(|(&id, request)| match &request.outcome {
            Some((got, Outcome::Responded { replayed, code, response })) => Some(ReceivedResponse {
                id,
                identity: request.identity,
                sent: request.sent,
                got: *got,
                replayed: *replayed,
                code: *code,
                response,
            }),
            _ => None,
        })
    }

    /// The executions of which this response holds anything, which must be one, or none for a refusal.
    fn sources(&self, response: &SentResponse) -> Vec<(u64, &Execution<'a>)> {
        let holds = |canary: &str| {
            response.body.contains(canary)
                || response.headers.iter().any(|(name, value)| name.contains(canary) || value.contains(canary))
        };
        self.executions.iter().filter(|(_, execution)| holds(execution.canary)).map(|(&id, it)| (id, it)).collect()
    }

    /// The executions by key and window.
    fn by_key(&self) -> BTreeMap<(ScopedKey<'a>, usize), Vec<(u64, &Execution<'a>)>> {
        let mut by_key = BTreeMap::<_, Vec<_>>::new();
        for (&id, execution) in &self.executions {
            by_key.entry((scoped_key(execution.identity), execution.started.window)).or_default().push((id, execution));
        }
        by_key
    }
}

fn scoped_key(identity: &RequestIdentity) -> ScopedKey<'_> {
    (&identity.scope, &identity.key)
}

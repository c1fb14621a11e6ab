//! Checks of what clients got.

use std::collections::BTreeMap;

use idem_runtime::codes;

use super::{Execution, Findings, Outcome, ParsedHistory, ReceivedResponse, scoped_key};
use crate::history::{LAST_LOOK, SentResponse};

/// Headers that no record keeps, in the words of the promise, not of the implementation.
const NEVER_REPLAYED: &[&str] = &[
    "age",
    "alt-svc",
    "authentication-info",
    "clear-site-data",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "server-timing",
    "set-cookie",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "x-request-id",
];
/// Set by the server for each message, whether it is a replay or not.
const OF_THE_MESSAGE: &[&str] = &["connection", "content-length", "date", "transfer-encoding"];
const MARKER: (&str, &str) = ("idempotent-replayed", "true");
const NO_STORE: (&str, &str) = ("cache-control", "no-store");

type Headers<'a> = Vec<(&'a str, &'a str)>;

fn without<'a>(response: &'a SentResponse, names: &[&str]) -> Headers<'a> {
    let all = response.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.filter(|(name, _)| !names.contains(name)).collect()
}

/// What a replay of this response has.
fn as_replayed(recorded: &SentResponse) -> Headers<'_> {
    let mut headers = without(recorded, NEVER_REPLAYED);
    headers.push(MARKER);
    if !headers.iter().any(|(name, _)| *name == NO_STORE.0) {
        headers.push(NO_STORE);
    }
    headers
}

/// Equal but for the order of headers with different names, which HTTP gives no meaning.
fn differ(expected: Headers<'_>, got: Headers<'_>) -> bool {
    let by_name = |headers: Headers<'_>| {
        let mut by_name = BTreeMap::<String, Vec<String>>::new();
        for (name, value) in headers {
            by_name.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        by_name
    };
    by_name(expected) != by_name(got)
}

/// Every replay is what the body gave back, byte for byte, but for the headers that are never replayed.
pub(super) fn replays_are_identical(history: &ParsedHistory<'_>) -> Findings {
    let mut wrong = Vec::new();
    for given in history.given().filter(|given| given.replayed) {
        let sources = history.sources(given.response);
        let [(exec, execution)] = sources[..] else {
            wrong.push((given.got.seq, format!("a replay of {} executions", sources.len())));
            continue;
        };
        let Some((_, recorded)) = execution.ended.filter(|(ended, _)| ended.seq < given.got.seq) else {
            wrong.push((given.got.seq, format!("a replay of execution {exec}, which had not ended")));
            continue;
        };
        let SentResponse { status, body, .. } = given.response;
        // Framing is the server's own on every message; that none comes from the record is a matter of raw sockets.
        let got = without(given.response, OF_THE_MESSAGE);
        if *status != recorded.status || *body != recorded.body || differ(as_replayed(recorded), got) {
            wrong.push((given.got.seq, format!("not what execution {exec} gave back")));
        }
    }
    wrong
}

/// The first client to get the response gets the real one, which is also the recorded one.
pub(super) fn first_responses_are_the_recorded_ones(history: &ParsedHistory<'_>) -> Findings {
    let mut wrong = Vec::new();
    for given in history.given().filter(|given| !given.replayed && given.code.is_none()) {
        let sources = history.sources(given.response);
        let [(exec, execution)] = sources[..] else { continue };
        let Some((_, real)) = execution.ended else { continue };
        let SentResponse { status, body, .. } = given.response;
        let (expected, got) = (without(real, OF_THE_MESSAGE), without(given.response, OF_THE_MESSAGE));
        if execution.req != given.id || *status != real.status || *body != real.body || differ(expected, got) {
            wrong.push((given.got.seq, format!("not marked as a replay, and not what execution {exec} gave back")));
        }
    }
    wrong
}

/// Whatever is no refusal comes from one execution of the key, and in one window from the same one.
pub(super) fn single_source(history: &ParsedHistory<'_>) -> Findings {
    let (mut known, mut wrong) = (BTreeMap::new(), Vec::new());
    for given in history.given().filter(|given| given.code.is_none()) {
        let sources = history.sources(given.response);
        let [(exec, execution)] = sources[..] else {
            wrong.push((
                given.got.seq,
                format!("a response with status {} of {} executions", given.response.status, sources.len()),
            ));
            continue;
        };
        let window = execution.started.window;
        if scoped_key(execution.identity) != scoped_key(given.identity)
            || !(given.sent.window..=given.got.window).contains(&window)
        {
            wrong.push((given.got.seq, format!("execution {exec} belongs elsewhere")));
        }
        let first = *known.entry((scoped_key(given.identity), window)).or_insert(exec);
        if first != exec {
            wrong.push((given.got.seq, format!("a response of execution {exec}, after one of execution {first}")));
        }
    }
    wrong
}

/// A request with another fingerprint than the execution of its key gets 422 and nothing else; one with the same
/// fingerprint never does.
pub(super) fn mismatch(history: &ParsedHistory<'_>) -> Findings {
    let by_key = history.by_key();
    let mut wrong = Vec::new();
    for given in history.given() {
        let mut say = |text: String| wrong.push((given.got.seq, text));
        let here = |window| by_key.get(&(scoped_key(given.identity), window)).into_iter().flatten();
        let refused = given.code == Some("idempotency_key_mismatch");
        for (exec, execution) in history.sources(given.response) {
            if scoped_key(execution.identity) == scoped_key(given.identity)
                && execution.identity.fp != given.identity.fp
            {
                say(format!("holds the response of execution {exec}, which had another fingerprint"));
            }
        }
        if refused {
            let mut windows = given.sent.window..=given.got.window;
            let other = |(_, other): &(u64, &Execution<'_>)| {
                other.identity.fp != given.identity.fp && other.started.seq < given.got.seq
            };
            if given.response.status != 422 || !windows.any(|window| here(window).any(other)) {
                say("refused as a mismatch, and there is none".to_owned());
            }
        } else if given.sent.window == given.got.window {
            let first = here(given.sent.window).next();
            if let Some((exec, first)) = first.filter(|(_, first)| first.started.seq < given.sent.seq)
                && first.identity.fp != given.identity.fp
            {
                say(format!("not refused, though execution {exec} had another fingerprint"));
            }
        }
    }
    wrong
}

/// No response to one tenant holds anything of an execution for another.
pub(super) fn isolation(history: &ParsedHistory<'_>) -> Findings {
    let foreign = |given: ReceivedResponse<'_>| {
        let sources = history.sources(given.response).into_iter();
        let mut foreign = sources.filter(|(_, execution)| execution.identity.tenant != given.identity.tenant);
        foreign.next().map(|(exec, _)| (given.got.seq, format!("holds something of execution {exec}")))
    };
    history.given().filter_map(foreign).collect()
}

/// Once a handler has ended, each later request of the same window with the same fingerprint gets its replay: nothing is lost
/// because the client had gone, and nothing is dropped to make room.
pub(super) fn recorded(history: &ParsedHistory<'_>) -> Findings {
    let by_key = history.by_key();
    let mut wrong = Vec::new();
    for given in history.given().filter(|given| given.sent.window == given.got.window && !given.replayed) {
        let here = by_key.get(&(scoped_key(given.identity), given.sent.window));
        for (exec, execution) in here.into_iter().flatten() {
            let ended_before = execution.ended.is_some_and(|(ended, _)| ended.seq < given.sent.seq);
            if ended_before && execution.identity.fp == given.identity.fp {
                let got = given.code.unwrap_or("a response that is no replay");
                wrong.push((given.got.seq, format!("{got}, though execution {exec} had ended before")));
            }
        }
    }
    wrong
}

/// Once nothing goes wrong any more, every request gets a response in time, and waiters get it soon after the end of the
/// body.
pub(super) fn liveness(history: &ParsedHistory<'_>) -> Findings {
    let Some(calm) = history.calm else { return Vec::new() };
    let nanos = |bound: std::time::Duration| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    let (response, replay) = (nanos(history.bounds.response), nanos(history.bounds.replay));
    let mut wrong = Vec::new();
    for (id, request) in history.requests.iter().filter(|(_, request)| request.sent.seq > calm.seq) {
        let until = request.outcome.as_ref().map_or(history.last, |(got, _)| *got);
        let known = matches!(request.outcome, Some((_, Outcome::Responded { .. })));
        if until.at - request.sent.at > response {
            let what = if known { "got its response late" } else { "got no response" };
            wrong.push((request.sent.seq, format!("request {id} {what}")));
        }
    }
    for given in history.given().filter(|given| given.replayed && given.sent.seq > calm.seq) {
        let [(exec, execution)] = history.sources(given.response)[..] else { continue };
        let Some((ended, _)) = execution.ended else { continue };
        if given.got.at - given.got.at.min(ended.at.max(given.sent.at)) > replay {
            wrong.push((given.got.seq, format!("the replay of execution {exec} came late")));
        }
    }
    wrong
}

/// A request of the last look learns what became of its key: a response, that the outcome is unknown, or why the key is not for
/// this request. A key that is still in flight then belongs to an owner that is gone.
pub(super) fn settled(history: &ParsedHistory<'_>) -> Findings {
    const SETTLED: [&str; 3] = [codes::OUTCOME_UNKNOWN, codes::KEY_MISMATCH, codes::STORE_FULL];
    let looks = history.requests.iter().filter(|(_, request)| request.client == LAST_LOOK);
    let wrong = looks.filter_map(|(id, request)| {
        let (what, got) = match &request.outcome {
            Some((got, Outcome::Responded { code, .. })) => (code.filter(|code| !SETTLED.contains(code))?, *got),
            Some((got, Outcome::Lost)) => ("no response", *got),
            None => ("no response", history.last),
        };
        Some((got.seq, format!("the last look {id} at a key got: {what}")))
    });
    wrong.collect()
}

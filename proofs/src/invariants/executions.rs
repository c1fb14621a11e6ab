//! Checks of what handlers did.

use std::collections::{BTreeMap, BTreeSet};

use super::{Execution, Findings, Outcome, ParsedHistory, ScopedKey, scoped_key};
use crate::history::{Event, SERVER};

/// The history itself makes sense: otherwise no other check means anything.
pub(super) fn well_formed(history: &ParsedHistory<'_>) -> Findings {
    let mut wrong = Vec::new();
    let (mut requests, mut learned) = (BTreeSet::new(), BTreeSet::new());
    let (mut started, mut running) = (BTreeSet::new(), BTreeSet::new());
    for (index, line) in history.lines.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &history.lines[before]);
        if before.is_some_and(|before| before.seq >= line.seq || before.at > line.at) {
            wrong.push((line.seq, "the order or the time goes back".to_owned()));
        }
        let fits = match &line.event {
            Event::Req { id, .. } => requests.insert(*id),
            Event::Resp { id, .. } | Event::Lost { id, .. } => requests.contains(id) && learned.insert(*id),
            Event::Start { exec, .. } => started.insert(*exec) && running.insert(*exec),
            Event::Effect { exec, .. } => running.contains(exec),
            Event::End { exec, .. } => running.remove(exec),
            Event::Crash { node } => {
                if node == SERVER {
                    running.clear();
                }
                true
            }
            Event::Fault { .. } | Event::Calm | Event::Room { .. } | Event::Drained { .. } | Event::Usage { .. } => {
                true
            }
        };
        if !fits {
            wrong.push((line.seq, format!("does not fit what came before: {:?}", line.event)));
        }
    }
    wrong
}

/// No two handlers run for one key at any instant, whatever the policy allows one after the other.
pub(super) fn one_at_a_time(history: &ParsedHistory<'_>) -> Findings {
    let mut running = BTreeMap::<ScopedKey<'_>, BTreeSet<u64>>::new();
    let mut wrong = Vec::new();
    for line in history.lines {
        match &line.event {
            Event::Start { exec, identity, .. } => {
                let here = running.entry(scoped_key(identity)).or_default();
                here.insert(*exec);
                if here.len() > 1 {
                    wrong.push((line.seq, format!("executions {here:?} run at once for {identity:?}")));
                }
            }
            Event::End { exec, .. } => running.values_mut().for_each(|here| here.retain(|running| running != exec)),
            Event::Crash { node } if node == SERVER => running.clear(),
            _ => {}
        }
    }
    wrong
}

/// In one window a handler starts at most once for one key.
pub(super) fn at_most_once(history: &ParsedHistory<'_>) -> Findings {
    let started_again = |(_, here): (_, Vec<(u64, &Execution<'_>)>)| {
        let &(first, _) = here.first()?;
        let &(again, execution) = here.get(1)?;
        Some((execution.started.seq, format!("execution {again} after {first} for {:?}", execution.identity)))
    };
    history.by_key().into_iter().filter_map(started_again).collect()
}

/// In one window each effect happens at most once for one key.
pub(super) fn one_effect(history: &ParsedHistory<'_>) -> Findings {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for line in history.lines {
        let Event::Effect { exec, n } = &line.event else { continue };
        let Some(execution) = history.executions.get(exec) else { continue };
        if !seen.insert((scoped_key(execution.identity), execution.started.window, *n)) {
            wrong.push((line.seq, format!("effect {n} again, by execution {exec}, for {:?}", execution.identity)));
        }
    }
    wrong
}

/// A handler that started ends, unless the server crashed or the history says that it was abandoned.
pub(super) fn to_the_end(history: &ParsedHistory<'_>) -> Findings {
    let abandoned =
        history.lines.iter().any(|line| matches!(line.event, Event::Drained { abandoned } if abandoned > 0));
    let cut = history.executions.iter().filter(|(_, execution)| {
        execution.ended.is_none() && execution.started.window == history.last.window && !abandoned
    });
    cut.map(|(id, execution)| (execution.started.seq, format!("execution {id} never ended"))).collect()
}

/// A handler starts only for a request that was sent, once for each, and a request that was refused or served with a
/// replay started none.
pub(super) fn fail_closed(history: &ParsedHistory<'_>) -> Findings {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (id, execution) in &history.executions {
        let mut say = |text: &str| wrong.push((execution.started.seq, format!("execution {id}: {text}")));
        let Some(request) = history.requests.get(&execution.req) else {
            say("no client asked for it");
            continue;
        };
        if !seen.insert(execution.req) {
            say("its request started a body before");
        }
        if request.identity != execution.identity {
            say("its request asked for something else");
        }
        match request.outcome {
            Some((_, Outcome::Responded { code: Some(code), .. })) => say(&format!("its request was refused: {code}")),
            Some((_, Outcome::Responded { replayed: true, .. })) => say("its request got a replay"),
            _ => {}
        }
    }
    wrong
}

/// When nothing is under way, no execution runs, and exactly the places of this window are held.
pub(super) fn conservation(history: &ParsedHistory<'_>) -> Findings {
    let (mut running, mut held, mut wrong) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for line in history.lines {
        match &line.event {
            Event::Start { exec, identity, .. } => {
                running.insert(*exec);
                held.insert(scoped_key(identity));
            }
            Event::End { exec, .. } => drop(running.remove(exec)),
            Event::Crash { node } if node == SERVER => (running, held) = Default::default(),
            Event::Usage { entries, executions } if (*entries, *executions) != (held.len(), running.len()) => {
                let (places, bodies) = (held.len(), running.len());
                let text =
                    format!("{entries} entries for {places} places, {executions} executions for {bodies} bodies");
                wrong.push((line.seq, text));
            }
            _ => {}
        }
    }
    wrong
}

/// No more places are held than there is room for, and a request is refused for want of room only while there is none.
pub(super) fn bounded(history: &ParsedHistory<'_>) -> Findings {
    let (mut held, mut room, mut wrong) = (BTreeSet::new(), usize::MAX, Vec::new());
    // The lines at which the store was full; a request may have been refused at any time while it was under way.
    let mut full = Vec::new();
    for line in history.lines {
        match &line.event {
            Event::Start { exec, identity, .. } => {
                held.insert(scoped_key(identity));
                if held.len() > room {
                    wrong.push((
                        line.seq,
                        format!("execution {exec} makes {} places, with room for {room}", held.len()),
                    ));
                }
            }
            Event::Crash { node } if node == SERVER => held.clear(),
            Event::Room { entries } => room = *entries,
            _ => {}
        }
        if held.len() >= room {
            full.push(line.seq);
        }
    }
    for given in history.given().filter(|given| given.code == Some("idempotency_store_full")) {
        if !full.iter().any(|seq| (given.sent.seq..=given.got.seq).contains(seq)) {
            wrong.push((given.got.seq, "refused for want of room, and there was room".to_owned()));
        }
    }
    wrong
}

/// When a server has shut down, as many handlers run as it says it left behind, and none starts or continues after that.
pub(super) fn shutdown(history: &ParsedHistory<'_>) -> Findings {
    let (mut running, mut drained, mut wrong) = (BTreeSet::new(), false, Vec::new());
    for line in history.lines {
        match &line.event {
            Event::Start { exec, .. } => drop(running.insert(*exec)),
            Event::End { exec, .. } => drop(running.remove(exec)),
            Event::Crash { node } if node == SERVER => (running, drained) = Default::default(),
            Event::Drained { abandoned } => {
                drained = true;
                if running.len() != *abandoned {
                    wrong.push((line.seq, format!("{abandoned} abandoned, but these run: {running:?}")));
                }
            }
            _ => {}
        }
        if drained && matches!(line.event, Event::Start { .. } | Event::Effect { .. } | Event::End { .. }) {
            wrong.push((line.seq, format!("after the shutdown: {:?}", line.event)));
        }
    }
    wrong
}

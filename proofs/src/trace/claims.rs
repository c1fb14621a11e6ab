//! The steps of claims with leases.

use idem_runtime::codes;

use super::Event;
use super::replay::{KeyTrace, Progress, Traced};
use crate::model::{Abandoned, Action, Protocol, Reply, Slot, State, Step};

impl Traced for Protocol {
    fn with_requests(&self, requests: usize) -> Self {
        Self { attempts: requests, ..self.clone() }
    }

    fn explain(&self, trace: &KeyTrace<'_>, state: &State, me: usize, event: &Event) -> Option<State> {
        let now = state.attempts[me].step;
        let owns = matches!(state.slot, Slot::Claim { owner, .. } if owner == me);
        let becomes = |action, step| self.step(state, action).filter(|next| next.attempts[me].step == step);
        match event {
            Event::Asked => None,
            Event::Granted if state.slot == Slot::Free || owns => becomes(Action::Begin(me), Step::Claimed),
            Event::TakenOver if self.abandoned == Abandoned::Rerun && state.slot != Slot::Free => {
                becomes(Action::Begin(me), Step::Claimed)
            }
            Event::Granted | Event::TakenOver => None,
            Event::Started(_) => self.step(state, Action::Effect(me)),
            Event::Completed if owns || state.slot == Slot::Record(me) => self.step(state, Action::Complete(me)),
            Event::Completed => None,
            Event::Released if now == Step::Asking => {
                // A claim that was granted too late.
                let granted = if owns { state.clone() } else { self.step(state, Action::BeginLosesAck(me))? };
                self.steps(&granted, release_late(me))
            }
            Event::Released if owns => self.step(state, Action::Release(me)),
            Event::Released => None,
            // As above, after another request has taken it over.
            Event::Lost if now == Step::Asking => (!owns && state.slot != Slot::Free).then(|| state.clone()),
            Event::Lost if !owns && now == Step::Ran => self.step(state, Action::Complete(me)),
            Event::Lost => None,
            // Nothing is known of the store.
            Event::Unconfirmed => (now == Step::Ran).then(|| state.clone()),
            Event::Replayed(execution) => {
                becomes(Action::Begin(me), Step::Replied(Reply::From(trace.request_of(execution)?)))
            }
            Event::Refused(code) => refused(self, state, me, code),
        }
    }

    fn unseen(&self, trace: &KeyTrace<'_>, progress: &Progress<'_>, state: &State) -> Vec<State> {
        let mut states = Vec::new();
        if let Slot::Claim { owner, .. } = state.slot {
            states.extend(self.step(state, Action::LeaseEnds));
            if progress.reached(owner) {
                // Its owner was slow, or died.
                states.extend(self.steps(state, [Action::Pause(owner), Action::LeaseEnds, Action::Resume(owner)]));
                states.extend(self.step(state, Action::Renew(owner)));
                if progress.may_be_dead(owner) {
                    states.extend(self.steps(state, [Action::Crash(owner), Action::LeaseEnds]));
                }
                if progress.is_silent(owner) {
                    states.extend(self.step(state, Action::CompleteLosesAck(owner)));
                }
                // It was granted too late, and its process may die before it can report that.
                if trace.gave_up(owner) || trace.only_asked(owner) {
                    states.extend(self.steps(state, release_late(owner)));
                }
            }
        }
        if !matches!(state.slot, Slot::Record(_) | Slot::Claim { live: true, .. }) {
            for me in 0..state.attempts.len() {
                if progress.reached(me) && progress.is_silent(me) {
                    let claimed = self.step(state, Action::BeginLosesAck(me));
                    states.extend(claimed.filter(|claimed| claimed.slot != state.slot));
                }
            }
        }
        states
    }

    fn describe(trace: &KeyTrace<'_>, state: &State) -> String {
        let attempts = state.attempts.iter().enumerate();
        let attempts = attempts.map(|(me, attempt)| format!("{} {:?}", trace.name(me), attempt.step));
        let slot = match state.slot {
            Slot::Free => "free".to_owned(),
            Slot::Claim { owner, live } => {
                format!("claimed by {}, {}", trace.name(owner), if live { "live" } else { "abandoned" })
            }
            Slot::Record(owner) => format!("recorded by {}", trace.name(owner)),
        };
        format!("{slot}; {}", attempts.collect::<Vec<_>>().join(", "))
    }
}

/// A claim is released that its request did not hear of.
fn release_late(me: usize) -> [Action; 2] {
    [Action::Begin(me), Action::Release(me)]
}

/// Refusals that change nothing must be true of the state.
fn refused(protocol: &Protocol, state: &State, me: usize, code: &str) -> Option<State> {
    let now = state.attempts[me].step;
    let is_so = match code {
        codes::OUTCOME_UNKNOWN if now == Step::Replied(Reply::Unknown) => true,
        codes::OUTCOME_UNKNOWN => {
            let next = protocol.step(state, Action::Begin(me))?;
            return (next.attempts[me].step == Step::Replied(Reply::Unknown)).then_some(next);
        }
        codes::KEY_LOCKED => {
            now == Step::Asking && matches!(state.slot, Slot::Claim { owner, live: true } if owner != me)
        }
        // The model has one fingerprint. Whatever the other one is, a free key is granted.
        codes::KEY_MISMATCH | codes::POLICY_CHANGED => now == Step::Asking && state.slot != Slot::Free,
        codes::NOT_REPLAYABLE => now == Step::Asking && matches!(state.slot, Slot::Record(_)),
        codes::STORE_FULL => now == Step::Asking && state.slot == Slot::Free,
        // Its claim is released before or after this.
        codes::TOO_MANY_EXECUTIONS => matches!(now, Step::Claimed | Step::Replied(Reply::Refused)),
        codes::STORE_UNAVAILABLE => matches!(now, Step::Asking | Step::Replied(Reply::Refused)),
        _ => false,
    };
    is_so.then(|| state.clone())
}

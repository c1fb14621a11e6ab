//! The steps of `Tx`, whose claim is the transaction of the handler.

use idem_runtime::codes;

use super::Event;
use super::replay::{KeyTrace, Progress, Traced};
use crate::model::transaction::{Action, Reply, Session, State, Step, TransactionProtocol};

impl Traced for TransactionProtocol {
    fn with_requests(&self, requests: usize) -> Self {
        Self { fingerprints: vec![0; requests], ..self.clone() }
    }

    fn explain(&self, trace: &KeyTrace<'_>, state: &State, me: usize, event: &Event) -> Option<State> {
        let (now, session) = state.requests[me];
        let asks = [Action::Insert(me), Action::LookAtRow(me)];
        let mut replies = asks.into_iter().filter_map(|then| self.steps(state, [Action::Begin(me), then]));
        let mut becomes = |step| replies.find(|next| next.requests[me].0 == step);
        match event {
            Event::Granted => becomes(Step::Claimed),
            Event::Started(_) => self.step(state, Action::Run(me)),
            Event::Completed => match (now, session) {
                (Step::CommitSent, Session::Committed) => self.step(state, Action::AckArrives(me)),
                // Its acknowledgement was lost, and the record was found.
                (Step::CommitSent, Session::Committing) => self.steps(
                    state,
                    [Action::CommitArrives(me), Action::Unlock(me), Action::ConnectionBreaks(me), Action::Look(me)],
                ),
                (Step::Ran, _) => self.steps(
                    state,
                    [Action::SendCommit(me), Action::CommitArrives(me), Action::Unlock(me), Action::AckArrives(me)],
                ),
                _ => None,
            },
            Event::Released => {
                let rolled_back = self.step(state, Action::RollBack(me))?;
                // Nothing is locked if the session had ended before.
                Some(self.step(&rolled_back, Action::Unlock(me)).unwrap_or(rolled_back))
            }
            Event::Replayed(execution) => becomes(Step::Replied(Reply::From(trace.request_of(execution)?))),
            Event::Refused(code) => self.refused(trace, state, me, code),
            // A transaction has no lease, and the client waits for its end.
            Event::Asked | Event::TakenOver | Event::Lost | Event::Unconfirmed => None,
        }
    }

    fn unseen(&self, _: &KeyTrace<'_>, progress: &Progress<'_>, state: &State) -> Vec<State> {
        let mut states = Vec::new();
        for (me, &(step, session)) in state.requests.iter().enumerate() {
            if !progress.reached(me) {
                continue;
            }
            if step == Step::Asking && progress.is_silent(me) && state.holder().is_none() && state.record.is_none() {
                states.extend(self.steps(state, [Action::Begin(me), Action::Insert(me)]));
            }
            if session != Session::Idle {
                states.extend(self.step(state, Action::SendCommit(me)));
                states.extend(self.steps(state, [Action::CommitArrives(me), Action::Unlock(me)]));
                states.extend(self.steps(state, [Action::SessionEnds(me), Action::Unlock(me)]));
                if progress.may_be_dead(me) {
                    states.extend(self.step(state, Action::Crash(me)));
                }
            }
        }
        states
    }

    fn describe(trace: &KeyTrace<'_>, state: &State) -> String {
        let requests = state.requests.iter().enumerate();
        let requests = requests.map(|(me, (step, session))| format!("{} {step:?} {session:?}", trace.name(me)));
        let key = match (state.holder(), state.record) {
            (_, Some(execution)) => format!("recorded by {}", trace.name(execution)),
            (Some(holder), None) => format!("locked by {}", trace.name(holder)),
            (None, None) => "free".to_owned(),
        };
        format!("{key}; {}", requests.collect::<Vec<_>>().join(", "))
    }
}

impl TransactionProtocol {
    /// Refusals that change nothing must be true of the state.
    fn refused(&self, trace: &KeyTrace<'_>, state: &State, me: usize, code: &str) -> Option<State> {
        let is_free = state.holder().is_none() && state.record.is_none();
        let is_so = match (state.requests[me].0, code) {
            // One that asks in the same process goes first, and is not yet known to the database.
            (Step::Asking, codes::KEY_LOCKED) => {
                state.holder().is_some() || (state.record.is_none() && trace.is_second(me))
            }
            // Here all requests have one fingerprint. Whatever the other one is, a free key is granted.
            (Step::Asking, codes::KEY_MISMATCH | codes::POLICY_CHANGED) => !is_free,
            (Step::Asking, codes::STORE_UNAVAILABLE) => true,
            (Step::Claimed | Step::Ran, codes::STORE_UNAVAILABLE) => {
                return self.step(state, Action::ConnectionBreaks(me));
            }
            (Step::CommitSent, codes::STORE_UNAVAILABLE) => {
                return self.steps(state, [Action::ConnectionBreaks(me), Action::LookFails(me)]);
            }
            // Its transaction was rolled back before this.
            (Step::Replied(Reply::NothingHappened), codes::TOO_MANY_EXECUTIONS) => true,
            _ => false,
        };
        is_so.then(|| state.clone())
    }
}

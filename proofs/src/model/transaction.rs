//! The protocol of `Tx` as an executable specification: every interleaving of a few requests under one key, whose claim, effect and
//! record are one transaction of the database.
//!
//! A request has its own process and session. A process that dies, and a connection that breaks, leave the session as it is
//! until the database notices: meanwhile the session holds the lock of the key, and a COMMIT that was sent may still arrive.

use stateright::{Model, Property};

/// The names of the properties.
pub mod property {
    /// The effect is committed at most once.
    pub const ONE_EFFECT: &str = "at most one effect";
    /// All responses that clients get are of one execution.
    pub const ONE_SOURCE: &str = "one response source";
    /// A response that a client has is recorded, and its effect is committed.
    pub const DURABLE: &str = "a response is of a committed execution";
    /// A record and its effect are committed together.
    pub const ATOMIC: &str = "a record has its effect";
    /// A request that was told so has had no effect, and will have none.
    pub const NOTHING_HAPPENED: &str = "nothing happened for a request that was told so";
    /// A request is told of a mismatch only if another one with another fingerprint had the key.
    pub const TRUE_MISMATCH: &str = "a mismatch has a cause";
    /// In the end each request whose process lives has a reply.
    pub const NOT_STUCK: &str = "no request is stuck";
    /// Not a promise: shows that the model gets as far as a replay.
    pub const REPLAYED: &str = "a client gets a replay";

    /// What is promised.
    pub const PROMISES: [&str; 7] =
        [ONE_EFFECT, ONE_SOURCE, DURABLE, ATOMIC, NOTHING_HAPPENED, TRUE_MISMATCH, NOT_STUCK];
}

/// A mistake that the protocol does not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The record is committed first, on another connection, and then the effect.
    RecordBeforeCommit,
    /// The client gets the response before the COMMIT is confirmed.
    ReplyBeforeCommit,
    /// A request that does not get the lock of the key tries that of the key and the fingerprint, to tell a duplicate from a
    /// mismatch. The owner may end between the two.
    RacingLocks,
    /// A request that sees the lock of another fingerprint is told of a mismatch, without another look at the row.
    UnconfirmedMismatch,
    /// The lock of a key beside which no lock of a fingerprint is seen counts as that of another one.
    PartsAsMismatch,
    /// After a COMMIT that was not confirmed the record is looked for while the session may still commit.
    ImpatientLook,
}

/// One configuration of the protocol, and what may go wrong in it.
#[derive(Clone, Debug)]
pub struct TransactionProtocol {
    /// The fingerprint of each request.
    pub fingerprints: Vec<u8>,
    /// Processes die, at any step.
    pub crash: bool,
    /// Connections break, each at any step from the claim on. After the COMMIT was sent it may not arrive, or its acknowledgement is
    /// lost, and the database may be away when it is looked for.
    pub lost_acks: bool,
    /// A mistake.
    pub fault: Option<Fault>,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Session {
    /// It is in no transaction.
    Idle,
    /// Its transaction has the lock of the key.
    Open,
    /// As `Open`, and a COMMIT is on its way.
    Committing,
    /// Its transaction has ended, and it has given the lock of the fingerprint back, but not yet that of the key.
    Unlocking {
        /// Whether it has committed.
        committed: bool,
    },
    /// It has committed, and its acknowledgement is on its way.
    Committed,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    /// A response that this execution made, live or replayed.
    From(usize),
    /// The key has another fingerprint.
    Mismatch,
    /// Nothing happened for this request, which may be sent again.
    NothingHappened,
    /// The database did not say what happened. A retry finds out.
    Unavailable,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// It has no reply of the database.
    Asking,
    /// The lock of the key was not free; an owner with this fingerprint had it.
    Refused(u8),
    /// The lock of the key was not free.
    Missed,
    /// And no row was seen.
    SawNoRow,
    /// And then a session had the lock, with another fingerprint as it seemed. It was this one.
    SawOther(u8),
    /// Its transaction has the lock of the key, and is about to insert the row.
    Locked,
    /// Its transaction has the key.
    Claimed,
    /// Its handler has run in the transaction.
    Ran,
    /// It has sent COMMIT.
    CommitSent,
    /// Its connection broke before the COMMIT was confirmed.
    InDoubt,
    /// Its client has a reply.
    Replied(Reply),
    /// Its process has died.
    Crashed,
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The execution that left the committed record.
    pub(crate) record: Option<usize>,
    /// The executions whose effects are committed.
    effects: Vec<usize>,
    pub(crate) requests: Vec<(Step, Session)>,
    false_mismatch: bool,
}

/// What can happen; the number is the request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the words of the protocol")]
pub enum Action {
    Begin(usize),
    TryFingerprint(usize),
    LookAtRow(usize),
    LookAtLocks(usize),
    LookAtRowAgain(usize),
    Insert(usize),
    Run(usize),
    SendCommit(usize),
    CommitArrives(usize),
    Unlock(usize),
    AckArrives(usize),
    ConnectionBreaks(usize),
    RollBack(usize),
    Look(usize),
    LookFails(usize),
    Crash(usize),
    SessionEnds(usize),
}

impl State {
    /// The request whose session has the lock of the key.
    pub(crate) fn holder(&self) -> Option<usize> {
        let holds = |session| matches!(session, Session::Open | Session::Committing | Session::Unlocking { .. });
        self.requests.iter().position(|&(_, session)| holds(session))
    }

    /// The executions whose responses clients have.
    fn responses(&self) -> impl Iterator<Item = usize> {
        self.requests.iter().filter_map(|(step, _)| match step {
            Step::Replied(Reply::From(execution)) => Some(*execution),
            _ => None,
        })
    }
}

impl TransactionProtocol {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// The statement that claims the key.
    fn begin(&self, state: &mut State, me: usize) {
        state.requests[me] = match state.holder() {
            Some(holder) if self.has(Fault::RacingLocks) => (Step::Refused(self.fingerprints[holder]), Session::Idle),
            Some(_) => (Step::Missed, Session::Idle),
            None => (Step::Locked, Session::Open),
        };
    }

    /// The statement that looks at the row, and tries the lock again.
    fn look_at_row(&self, state: &mut State, me: usize) {
        if let Some(execution) = state.record {
            self.judge(state, me, execution);
        } else if state.holder().is_some() {
            state.requests[me].0 = Step::SawNoRow;
        } else {
            state.requests[me] = (Step::Locked, Session::Open);
        }
    }

    /// One look at the locks says who has the key, and with which fingerprint. If that is the same, the request is told that the key is
    /// in flight, and asks again.
    fn look_at_locks(&self, state: &mut State, me: usize) {
        let other = state.holder().filter(|&holder| {
            let gives_back = matches!(state.requests[holder].1, Session::Unlocking { .. });
            if gives_back { self.has(Fault::PartsAsMismatch) } else { self.differ(holder, me) }
        });
        match other.map(|holder| self.fingerprints[holder]) {
            Some(theirs) if self.has(Fault::UnconfirmedMismatch) => self.tell_mismatch(state, me, theirs),
            Some(theirs) => state.requests[me].0 = Step::SawOther(theirs),
            None => state.requests[me].0 = Step::Asking,
        }
    }

    /// Looks at the row once more: the session that had the lock may be a retry, and the owner with the same fingerprint as this request
    /// has ended.
    fn look_at_row_again(&self, state: &mut State, me: usize) {
        let Step::SawOther(theirs) = state.requests[me].0 else { return };
        match state.record {
            Some(execution) => self.judge(state, me, execution),
            None => self.tell_mismatch(state, me, theirs),
        }
    }

    fn differ(&self, one: usize, other: usize) -> bool {
        self.fingerprints[one] != self.fingerprints[other]
    }

    /// The row has a record.
    fn judge(&self, state: &mut State, me: usize, execution: usize) {
        if self.differ(execution, me) {
            self.tell_mismatch(state, me, self.fingerprints[execution]);
        } else {
            state.requests[me] = (Step::Replied(Reply::From(execution)), Session::Idle);
        }
    }

    fn tell_mismatch(&self, state: &mut State, me: usize, theirs: u8) {
        state.requests[me] = (Step::Replied(Reply::Mismatch), Session::Idle);
        let is_recorded = state.record.is_some_and(|execution| !self.differ(execution, me));
        state.false_mismatch |= is_recorded || theirs == self.fingerprints[me];
    }

    fn try_fingerprint(&self, state: &mut State, me: usize, met: u8) {
        let is_held = state.holder().is_some_and(|holder| self.fingerprints[holder] == self.fingerprints[me]);
        state.requests[me].0 = if is_held { Step::Asking } else { Step::Replied(Reply::Mismatch) };
        state.false_mismatch |= !is_held && met == self.fingerprints[me];
    }

    fn act(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Begin(me) => self.begin(state, me),
            Action::LookAtRow(me) => self.look_at_row(state, me),
            Action::LookAtLocks(me) => self.look_at_locks(state, me),
            Action::LookAtRowAgain(me) => self.look_at_row_again(state, me),
            Action::Insert(me) => match state.record {
                Some(execution) => self.judge(state, me, execution),
                None => state.requests[me].0 = Step::Claimed,
            },
            Action::TryFingerprint(me) => {
                let Step::Refused(met) = state.requests[me].0 else { return false };
                self.try_fingerprint(state, me, met);
            }
            Action::Run(me) => state.requests[me].0 = Step::Ran,
            Action::SendCommit(me) => {
                if self.has(Fault::RecordBeforeCommit) {
                    state.record = Some(me);
                }
                let responses = self.has(Fault::ReplyBeforeCommit);
                let step = if responses { Step::Replied(Reply::From(me)) } else { Step::CommitSent };
                state.requests[me] = (step, Session::Committing);
            }
            Action::CommitArrives(me) => {
                state.effects.push(me);
                state.record = Some(me);
                state.requests[me].1 = Session::Unlocking { committed: true };
            }
            Action::Unlock(me) => {
                let (step, session) = state.requests[me];
                let is_awaited = step == Step::CommitSent && session == Session::Unlocking { committed: true };
                state.requests[me].1 = if is_awaited { Session::Committed } else { Session::Idle };
            }
            Action::AckArrives(me) => state.requests[me] = (Step::Replied(Reply::From(me)), Session::Idle),
            Action::ConnectionBreaks(me) => {
                // Without a COMMIT there is nothing to be in doubt of.
                let sent = state.requests[me].0 == Step::CommitSent;
                state.requests[me].0 = if sent { Step::InDoubt } else { Step::Replied(Reply::NothingHappened) };
                if state.requests[me].1 == Session::Committed {
                    state.requests[me].1 = Session::Idle;
                }
            }
            Action::RollBack(me) => {
                state.requests[me].0 = Step::Replied(Reply::NothingHappened);
                // Unless it has ended before.
                if state.requests[me].1 == Session::Open {
                    state.requests[me].1 = Session::Unlocking { committed: false };
                }
            }
            Action::Look(me) => {
                let waits = state.holder() == Some(me) && !self.has(Fault::ImpatientLook);
                if waits {
                    return false;
                }
                let reply = if state.record == Some(me) { Reply::From(me) } else { Reply::NothingHappened };
                state.requests[me].0 = Step::Replied(reply);
            }
            Action::LookFails(me) => state.requests[me].0 = Step::Replied(Reply::Unavailable),
            Action::Crash(me) => state.requests[me].0 = Step::Crashed,
            Action::SessionEnds(me) => state.requests[me].1 = Session::Unlocking { committed: false },
        }
        true
    }

    /// Nothing can happen any more, but that requests ask in vain.
    fn is_at_its_end(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        let asks = |action: &Action| {
            matches!(
                action,
                Action::Begin(_) | Action::LookAtRow(_) | Action::LookAtLocks(_) | Action::TryFingerprint(_)
            )
        };
        actions.is_empty() || (state.holder().is_some() && actions.iter().all(asks))
    }
}

impl Model for TransactionProtocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let requests = vec![(Step::Asking, Session::Idle); self.fingerprints.len()];
        vec![State { record: None, effects: Vec::new(), requests, false_mismatch: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (me, &(step, session)) in state.requests.iter().enumerate() {
            let mut can = |possible: bool, action| actions.extend(possible.then_some(action));
            let lives = !matches!(step, Step::Crashed | Step::Replied(_));
            let holds = matches!(session, Session::Open | Session::Committing);
            // If connections break, the database may notice first.
            let is_cut_off = self.lost_acks || step == Step::Crashed;
            can(step == Step::Asking, Action::Begin(me));
            can(matches!(step, Step::Refused(_)), Action::TryFingerprint(me));
            can(step == Step::Missed, Action::LookAtRow(me));
            can(step == Step::SawNoRow, Action::LookAtLocks(me));
            can(matches!(step, Step::SawOther(_)), Action::LookAtRowAgain(me));
            can(step == Step::Locked && session == Session::Open, Action::Insert(me));
            can(step == Step::Claimed, Action::Run(me));
            can(step == Step::Ran && session == Session::Open, Action::SendCommit(me));
            can(session == Session::Committing, Action::CommitArrives(me));
            can(matches!(session, Session::Unlocking { .. }), Action::Unlock(me));
            can(step == Step::CommitSent && session == Session::Committed, Action::AckArrives(me));
            can(matches!(step, Step::Locked | Step::Claimed | Step::Ran), Action::RollBack(me));
            can(
                self.lost_acks && matches!(step, Step::Locked | Step::Claimed | Step::Ran | Step::CommitSent),
                Action::ConnectionBreaks(me),
            );
            can(step == Step::InDoubt, Action::Look(me));
            can(step == Step::InDoubt, Action::LookFails(me));
            can(self.crash && lives, Action::Crash(me));
            can(is_cut_off && holds, Action::SessionEnds(me));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(property::ONE_EFFECT, |_, state: &State| state.effects.len() <= 1),
            Property::always(property::ONE_SOURCE, |_, state: &State| {
                let mut sources = state.responses();
                let first = sources.next();
                sources.all(|source| Some(source) == first)
            }),
            Property::always(property::DURABLE, |_, state: &State| {
                state.responses().all(|execution| state.record == Some(execution) && state.effects.contains(&execution))
            }),
            Property::always(property::ATOMIC, |_, state: &State| {
                state.record.is_none_or(|execution| state.effects.contains(&execution))
            }),
            Property::always(property::NOTHING_HAPPENED, |_, state: &State| {
                let told = |&(step, _): &(Step, Session)| step == Step::Replied(Reply::NothingHappened);
                !state.effects.iter().any(|&execution| told(&state.requests[execution]))
            }),
            Property::always(property::TRUE_MISMATCH, |_, state: &State| !state.false_mismatch),
            Property::always(property::NOT_STUCK, |model: &Self, state: &State| {
                let has_ended = |&(step, _): &(Step, Session)| matches!(step, Step::Replied(_) | Step::Crashed);
                !model.is_at_its_end(state) || state.requests.iter().all(has_ended)
            }),
            Property::sometimes(property::REPLAYED, |_, state: &State| state.responses().count() > 1),
        ]
    }
}

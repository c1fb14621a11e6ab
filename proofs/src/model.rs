//! The protocol of claims and records as an executable specification: every interleaving of a few attempts under one key.
//!
//! One key, one TTL window. An attempt is one request with its own claim token. Time is not counted: a lease may
//! end whenever it is not renewed, that is while its owner is crashed, paused, gone, or does not know that it has the claim.
//! What the engine does: it leaves an abandoned claim as it is (`refuse`) or takes it over before it runs (`rerun`), it
//! never releases after the handler started unless the policy says so, and an owner that lost its claim cannot complete it.
//! Under `rerun` such an owner does not reply to its client either: the response that counts is that of the run which took the
//! claim over, so all clients get the response of one execution ([`Protocol::RERUN`]). Two replies are sent before any process can know of
//! the loss, and make one of two sources, as if the owner did not care: that of a response which streams, and that of a store
//! which takes longer over a completion than the engine makes a client wait ([`Protocol::lost_owner_replies`]).

mod check;
pub mod transaction;

pub use check::property;

/// What a request gets that finds a claim without an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// The outcome is unknown; the key stays as it is.
    Refuse,
    /// Take the claim over and run the handler again.
    Rerun,
}

/// What happens to an execution whose client hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// Clients stay.
    Never,
    /// The handler has its own task and continues. What the engine does.
    GoesOn,
    /// The body is cut off and its claim left as it is.
    CutsOff,
    /// The handler is cut off and its claim released: the classic middleware.
    Releases,
}

/// One configuration of the protocol, and what may go wrong in it.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// How many attempts there are.
    pub attempts: usize,
    /// The policy for claims without an owner.
    pub abandoned: Abandoned,
    /// Owners crash, at any step.
    pub crash: bool,
    /// Owners pause for longer than their lease, once each, and then continue.
    pub pause: bool,
    /// The replies to `begin` and `complete` get lost, once each; the attempt repeats the call or, for `begin`, gives up.
    pub lost_acks: bool,
    /// What a client that hangs up does to the body.
    pub hang_up: HangUp,
    /// Claims are released before the handler started: no place for another execution.
    pub release: bool,
    /// The policy gives claims back after the handler ran (`Unrecorded`).
    pub unrecorded: bool,
    /// Changes are a compare-and-set on the owner token.
    pub token: bool,
    /// A repeated `begin` or `complete` carries the token of the first.
    pub same_token: bool,
    /// The claim vanishes with its lease, instead of being found without an owner.
    pub shared_lease: bool,
    /// The store loses an acknowledged record, once. A failover does; no protocol can repair it.
    pub loses_record: bool,
    /// An owner that lost its claim sends its own response to the client. What the engine does under `refuse`, if the loss
    /// has no other run behind it, and never under `rerun`, unless the response was sent before the loss was known.
    pub lost_owner_replies: bool,
    /// The effect and the completion are one transaction.
    pub transaction: bool,
}

impl Protocol {
    /// The engine with a sound store and nothing going wrong.
    pub const CALM: Self = Self {
        attempts: 4,
        abandoned: Abandoned::Refuse,
        crash: false,
        pause: false,
        lost_acks: false,
        hang_up: HangUp::Never,
        release: false,
        unrecorded: false,
        token: true,
        same_token: true,
        shared_lease: false,
        loses_record: false,
        lost_owner_replies: true,
        transaction: false,
    };

    /// The engine if the policy is to run again.
    pub const RERUN: Self = Self { abandoned: Abandoned::Rerun, lost_owner_replies: false, ..Self::CALM };
}

/// The state of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Nothing.
    Free,
    /// A claim.
    Claim {
        /// The attempt that has it.
        owner: usize,
        /// Its lease has not ended.
        live: bool,
    },
    /// A record, and the attempt whose execution left it.
    Record(usize),
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// It has no reply of the store, or no longer.
    Asking,
    /// It owns the claim, or believes so, and the handler has not started.
    Claimed,
    /// The handler has run.
    Ran,
    /// The client has its response.
    Replied(Reply),
    /// The client is gone, and the handler with it.
    Gone,
    /// The process is gone.
    Crashed,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// A response that this execution made, live or replayed.
    From(usize),
    /// The outcome is unknown.
    Unknown,
    /// The handler did not run for this request: no place, or the store did not reply.
    Refused,
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// How far it is.
    pub step: Step,
    paused: Option<bool>,
    lost_begin: bool,
    lost_complete: bool,
    listening: bool,
}

impl Attempt {
    fn is_stalled(&self) -> bool {
        self.paused == Some(true)
    }

    /// Believes that it owns the claim, and can renew it.
    fn renews(&self) -> bool {
        !self.is_stalled() && matches!(self.step, Step::Claimed | Step::Ran)
    }
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The state of the key.
    pub slot: Slot,
    /// The attempts.
    pub attempts: Vec<Attempt>,
    /// How many times the handler had its effect.
    pub effects: u8,
    overwritten: bool,
    foreign: bool,
    locked_out: bool,
    record_lost: bool,
}

/// What can happen; the number is the attempt's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the words of the protocol")]
pub enum Action {
    Begin(usize),
    BeginLosesAck(usize),
    GiveUp(usize),
    Effect(usize),
    Complete(usize),
    CompleteLosesAck(usize),
    Release(usize),
    Renew(usize),
    HangUp(usize),
    Crash(usize),
    Pause(usize),
    Resume(usize),
    LeaseEnds,
    LoseRecord,
}

impl Protocol {
    fn begin(&self, state: &mut State, me: usize) -> bool {
        let free = match state.slot {
            Slot::Record(execution) => {
                state.attempts[me].step = Step::Replied(Reply::From(execution));
                return true;
            }
            Slot::Free => true,
            Slot::Claim { owner, .. } if owner == me && self.same_token => true,
            // In flight: refused, and asked again by the client.
            Slot::Claim { live: true, .. } => return false,
            Slot::Claim { live: false, .. } => self.abandoned == Abandoned::Rerun,
        };
        if free {
            state.slot = Slot::Claim { owner: me, live: true };
            state.attempts[me].step = Step::Claimed;
        } else {
            state.locked_out |= matches!(state.slot, Slot::Claim { owner, .. } if owner == me);
            state.attempts[me].step = Step::Replied(Reply::Unknown);
        }
        true
    }

    fn complete(&self, state: &mut State, me: usize) {
        let owned = matches!(state.slot, Slot::Claim { owner, .. } if owner == me);
        let repeated = state.slot == Slot::Record(me) && self.same_token;
        state.attempts[me].step = Step::Replied(Reply::From(me));
        if owned {
            state.effects += u8::from(self.transaction);
            state.slot = Slot::Record(me);
        } else if !self.token {
            state.foreign = true;
            state.overwritten |= matches!(state.slot, Slot::Record(other) if other != me);
            state.slot = Slot::Record(me);
        } else if self.transaction && !repeated {
            // The transaction is rolled back, so nothing happened.
            state.attempts[me].step = Step::Asking;
        } else if !repeated && !self.lost_owner_replies {
            state.attempts[me].step = Step::Replied(Reply::Unknown);
        }
    }

    fn release(&self, state: &mut State, me: usize) {
        let owned = matches!(state.slot, Slot::Claim { owner, .. } if owner == me);
        if owned || !self.token {
            state.foreign |= !owned && state.slot != Slot::Free;
            state.slot = Slot::Free;
        }
    }

    fn act(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Begin(me) => return self.begin(state, me),
            Action::BeginLosesAck(me) => {
                state.attempts[me].lost_begin = true;
                let replied = self.begin(state, me);
                state.attempts[me].step = Step::Asking;
                return replied;
            }
            Action::GiveUp(me) => state.attempts[me].step = Step::Replied(Reply::Refused),
            Action::Effect(me) => {
                state.effects += 1;
                state.attempts[me].step = Step::Ran;
            }
            Action::Complete(me) => self.complete(state, me),
            Action::CompleteLosesAck(me) => {
                let step = state.attempts[me].step;
                state.attempts[me].lost_complete = true;
                self.complete(state, me);
                state.attempts[me].step = step;
            }
            Action::Release(me) => {
                let owned = matches!(state.slot, Slot::Claim { owner, .. } if owner == me);
                let response = match state.attempts[me].step {
                    Step::Ran if owned || self.lost_owner_replies => Reply::From(me),
                    Step::Ran => Reply::Unknown,
                    _ => Reply::Refused,
                };
                self.release(state, me);
                state.attempts[me].step = Step::Replied(response);
            }
            Action::Renew(me) => state.slot = Slot::Claim { owner: me, live: true },
            Action::HangUp(me) => {
                state.attempts[me].listening = false;
                if self.hang_up == HangUp::Releases {
                    self.release(state, me);
                }
                if self.hang_up != HangUp::GoesOn {
                    state.attempts[me].step = Step::Gone;
                }
            }
            Action::Crash(me) => state.attempts[me].step = Step::Crashed,
            Action::Pause(me) => state.attempts[me].paused = Some(true),
            Action::Resume(me) => state.attempts[me].paused = Some(false),
            Action::LeaseEnds => {
                let Slot::Claim { owner, .. } = state.slot else { return false };
                state.slot = if self.shared_lease { Slot::Free } else { Slot::Claim { owner, live: false } };
            }
            Action::LoseRecord => {
                state.record_lost = true;
                state.slot = Slot::Free;
            }
        }
        true
    }
}

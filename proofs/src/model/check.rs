//! What can happen next, and what must hold whatever happened.

use stateright::{Model, Property};

use super::{Action, Attempt, HangUp, Protocol, Reply, Slot, State, Step};

/// The names of the properties.
pub mod property {
    /// The handler has its effect at most once.
    pub const ONE_EFFECT: &str = "at most one effect";
    /// All responses that clients get stem from one execution.
    pub const ONE_SOURCE: &str = "one response source";
    /// A record stays what it is.
    pub const NO_OVERWRITE: &str = "a record is never overwritten";
    /// Only the owner of a claim changes it.
    pub const OWNER_ONLY: &str = "only the owner changes a claim";
    /// In the end every client that is still connected has a response.
    pub const NOT_STUCK: &str = "no attempt is stuck";
    /// An unknown outcome is told only after something went wrong.
    pub const EXPLAINED: &str = "an unknown outcome has a cause";
    /// An attempt is never told that the outcome is unknown because the claim is its own.
    pub const NOT_LOCKED_OUT: &str = "no attempt is locked out by its own claim";
    /// If no process crashed and no record was lost, a handler that ran has left a record in the end.
    pub const RECORDED: &str = "an effect leaves a record";
    /// Not a promise: shows that the model gets as far as a replay.
    pub const REPLAYED: &str = "a client gets a replay";

    /// What is promised.
    pub const PROMISES: [&str; 8] =
        [ONE_EFFECT, ONE_SOURCE, NO_OVERWRITE, OWNER_ONLY, NOT_STUCK, EXPLAINED, NOT_LOCKED_OUT, RECORDED];
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let attempt =
            Attempt { step: Step::Asking, paused: None, lost_begin: false, lost_complete: false, listening: true };
        vec![State {
            slot: Slot::Free,
            attempts: vec![attempt; self.attempts],
            effects: 0,
            overwritten: false,
            foreign: false,
            locked_out: false,
            record_lost: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for me in 0..state.attempts.len() {
            self.of(state, me, actions);
        }
        if matches!(state.slot, Slot::Claim { owner, live: true } if !state.attempts[owner].renews()) {
            actions.push(Action::LeaseEnds);
        }
        if self.loses_record && !state.record_lost && matches!(state.slot, Slot::Record(_)) {
            actions.push(Action::LoseRecord);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(property::ONE_EFFECT, |_, state: &State| state.effects <= 1),
            Property::always(property::ONE_SOURCE, |_, state: &State| {
                let mut sources = state.responses();
                let first = sources.next();
                sources.all(|source| Some(source) == first)
            }),
            Property::always(property::NO_OVERWRITE, |_, state: &State| !state.overwritten),
            Property::always(property::OWNER_ONLY, |_, state: &State| !state.foreign),
            Property::always(property::NOT_STUCK, |model: &Self, state: &State| {
                let over = |attempt: &Attempt| matches!(attempt.step, Step::Replied(_) | Step::Gone | Step::Crashed);
                !model.has_ended(state) || state.attempts.iter().all(over)
            }),
            Property::always(property::EXPLAINED, |_, state: &State| {
                let unknown = |attempt: &Attempt| attempt.step == Step::Replied(Reply::Unknown);
                !state.attempts.iter().any(unknown) || state.attempts.iter().any(Attempt::went_wrong)
            }),
            Property::always(property::NOT_LOCKED_OUT, |_, state: &State| !state.locked_out),
            Property::always(property::RECORDED, |model: &Self, state: &State| {
                let crashed = state.attempts.iter().any(|attempt| attempt.step == Step::Crashed);
                let excused = state.effects == 0 || crashed || state.record_lost;
                excused || !model.has_ended(state) || matches!(state.slot, Slot::Record(_))
            }),
            Property::sometimes(property::REPLAYED, |_, state: &State| state.responses().count() > 1),
        ]
    }
}

impl State {
    /// The executions whose responses clients have.
    fn responses(&self) -> impl Iterator<Item = usize> {
        self.attempts.iter().filter_map(|attempt| match attempt.step {
            Step::Replied(Reply::From(execution)) if attempt.listening => Some(execution),
            _ => None,
        })
    }
}

impl Attempt {
    fn went_wrong(&self) -> bool {
        self.paused.is_some() || self.lost_begin || matches!(self.step, Step::Gone | Step::Crashed)
    }
}

impl Protocol {
    /// Nothing can happen any more. Asking in vain is not a step.
    fn has_ended(&self, state: &State) -> bool {
        self.next_states(state).is_empty()
    }

    fn of(&self, state: &State, me: usize, actions: &mut Vec<Action>) {
        let attempt = state.attempts[me];
        let mut can = |possible: bool, action| actions.extend(possible.then_some(action));
        if attempt.is_stalled() {
            return can(true, Action::Resume(me));
        }
        let asking = attempt.step == Step::Asking;
        let (claimed, ran) = (attempt.step == Step::Claimed, attempt.step == Step::Ran);
        let completes = ran || (claimed && self.transaction);
        let grants = !matches!(state.slot, Slot::Record(_));
        let expired = matches!(state.slot, Slot::Claim { owner, live: false } if owner == me);
        can(asking, Action::Begin(me));
        can(asking && self.lost_acks && grants && !attempt.lost_begin, Action::BeginLosesAck(me));
        can(asking && attempt.lost_begin, Action::GiveUp(me));
        can(claimed && !self.transaction, Action::Effect(me));
        can(completes, Action::Complete(me));
        can(completes && self.lost_acks && !attempt.lost_complete, Action::CompleteLosesAck(me));
        // Once a completion was sent it is repeated, whatever else the policy allows.
        let undecided = !attempt.lost_complete;
        can(undecided && ((self.release && claimed) || (self.unrecorded && ran)), Action::Release(me));
        can((claimed || ran) && expired, Action::Renew(me));
        can(self.hang_up != HangUp::Never && attempt.listening && (claimed || ran), Action::HangUp(me));
        can(self.crash && (claimed || ran), Action::Crash(me));
        can(self.pause && attempt.paused.is_none() && (claimed || ran), Action::Pause(me));
    }
}

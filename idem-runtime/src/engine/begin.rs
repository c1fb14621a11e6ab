//! From what the store says of a key to an execution, or to what stands in its way.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Attempt, Block, Core, Refused};
use crate::counted;
use crate::ending;
use crate::engine::Place;
use crate::erased::{Answering, BoxClaim, BoxFuture, Granted};
use crate::execution::{Execution, Renewal};
use crate::origin::Origin;
use crate::rules::Abandoned;
use crate::store::{Begin, StoreError};

/// What the store has said, as far as it has answered.
pub(super) type Asked = Answering<'static, Begin<Granted>>;

/// What follows from the store's answer.
pub(super) enum Verdict {
    /// The body runs.
    Run(Execution),
    /// Something stands in the way.
    Blocked(Block),
    /// The store has not answered yet.
    Asking(Asked),
    /// A claim for which there is no place is to be given back.
    GiveBack(BoxClaim),
    /// An abandoned claim is to be taken over.
    TakeOver(Granted, Place),
}

impl Core {
    /// Asks the store for the key.
    pub(super) fn ask(self: &Arc<Self>, attempt: &Attempt) -> Asked {
        self.ask_for(attempt, None)
    }

    /// Asks the store for the key, for an execution of this origin.
    pub(super) fn ask_for(self: &Arc<Self>, attempt: &Attempt, origin: Option<Origin>) -> Asked {
        let attempt = *attempt;
        if !self.duties.expire {
            return Arc::clone(&self.store).begin(attempt, self.lease, origin);
        }
        let core = Arc::clone(self);
        Answering::new(async move { core.expirer.begin(&core.store, &*core.clock, attempt, core.lease, origin).await })
    }

    pub(super) fn judge(self: &Arc<Self>, attempt: &Attempt, begun: Result<Begin<Granted>, StoreError>) -> Verdict {
        match begun {
            // Only new keys are refused for want of a place, so this comes after the store was asked.
            Ok(Begin::Claimed(granted)) => match self.places.take() {
                Some(place) => Verdict::Run(self.execution(attempt, granted, place, false)),
                None => Verdict::GiveBack(granted.claim),
            },
            Ok(Begin::Completed(record)) => Verdict::Blocked(Block::Recorded(record)),
            Ok(Begin::InFlight(fingerprint)) => Verdict::Blocked(Block::InFlight(fingerprint)),
            // A claim that is dropped here stays abandoned: for an owner that was only slow, and since its body may have
            // run it is never given back.
            Ok(Begin::Abandoned(granted)) => {
                counted::abandoned();
                match attempt.rules.abandoned {
                    Abandoned::Refuse => Verdict::Blocked(Block::Refused(Refused::OutcomeUnknown)),
                    Abandoned::Rerun => match self.places.take() {
                        Some(place) => Verdict::TakeOver(granted, place),
                        None => Verdict::Blocked(Block::Refused(Refused::TooManyExecutions)),
                    },
                }
            }
            Err(StoreError::Full) => Verdict::Blocked(Block::Refused(Refused::StoreFull)),
            Err(error) => Verdict::Blocked(Block::Refused(Refused::StoreUnavailable(error))),
        }
    }

    /// Asks the store whatever is still to be asked.
    pub(super) fn resolve(self: Arc<Self>, attempt: Attempt, verdict: Verdict) -> BoxFuture<Result<Execution, Block>> {
        Box::pin(async move {
            let mut verdict = verdict;
            loop {
                verdict = match verdict {
                    Verdict::Run(execution) => return Ok(execution),
                    Verdict::Blocked(block) => return Err(block),
                    Verdict::Asking(asked) => self.judge(&attempt, asked.await),
                    Verdict::GiveBack(claim) => {
                        ending::release(attempt.key, claim).await;
                        Verdict::Blocked(Block::Refused(Refused::TooManyExecutions))
                    }
                    Verdict::TakeOver(mut granted, place) => match granted.claim.renew(self.lease).await {
                        Ok(()) => Verdict::Run(self.execution(&attempt, granted, place, true)),
                        // Somebody else was first.
                        Err(StoreError::Lost) => Verdict::Asking(self.ask(&attempt)),
                        Err(error) => Verdict::Blocked(Block::Refused(Refused::StoreUnavailable(error))),
                    },
                };
            }
        })
    }

    pub(super) fn execution(
        self: &Arc<Self>,
        attempt: &Attempt,
        granted: Granted,
        place: Place,
        took_over: bool,
    ) -> Execution {
        let &Attempt { key, fingerprint, rules, .. } = attempt;
        let Granted { claim, origin } = granted;
        let renewal = self.duties.renew.then(|| Renewal { lease: self.lease, lost: watch::Sender::new(false) });
        Execution { key, fingerprint, rules, claim, origin, took_over, renewal, core: Arc::clone(self), place }
    }
}

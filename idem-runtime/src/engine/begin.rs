//! From what the store says of a key to an execution, or to what stands in its way.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Attempt, Block, Core, Refused};
use crate::counted;
use crate::ending;
use crate::engine::Place;
use crate::erased::{Answering, BoxClaim, BoxFuture};
use crate::execution::{Execution, Renewal};
use crate::rules::Abandoned;
use crate::store::{Begin, StoreError};

/// What the store has said, as far as it has answered.
pub(super) type Asked = Answering<'static, Begin<BoxClaim>>;

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
    TakeOver(BoxClaim, Place),
}

impl Core {
    /// Asks the store for the key.
    pub(super) fn ask(self: &Arc<Self>, attempt: Attempt) -> Asked {
        let Attempt { key, fingerprint, rules } = attempt;
        if !self.duties.expire {
            return Arc::clone(&self.store).begin(key, fingerprint, self.lease, rules.ttl);
        }
        let core = Arc::clone(self);
        Answering::new(async move { core.expirer.begin(&core.store, &*core.clock, attempt, core.lease).await })
    }

    pub(super) fn judge(self: &Arc<Self>, attempt: Attempt, begun: Result<Begin<BoxClaim>, StoreError>) -> Verdict {
        match begun {
            // Only new keys are refused for want of a place, so this comes after the store was asked.
            Ok(Begin::Claimed(claim)) => match self.places.take() {
                Some(place) => Verdict::Run(self.execution(attempt, claim, place, false)),
                None => Verdict::GiveBack(claim),
            },
            Ok(Begin::Completed(record)) => Verdict::Blocked(Block::Recorded(record)),
            Ok(Begin::InFlight(fingerprint)) => Verdict::Blocked(Block::InFlight(fingerprint)),
            // A claim that is dropped here stays abandoned: for an owner that was only slow, and since its body may have
            // run it is never given back.
            Ok(Begin::Abandoned(claim)) => {
                counted::abandoned();
                match attempt.rules.abandoned {
                    Abandoned::Refuse => Verdict::Blocked(Block::Refused(Refused::OutcomeUnknown)),
                    Abandoned::Rerun => match self.places.take() {
                        Some(place) => Verdict::TakeOver(claim, place),
                        None => Verdict::Blocked(Block::Refused(Refused::TooManyExecutions)),
                    },
                }
            }
            Err(StoreError::Full) => Verdict::Blocked(Block::Refused(Refused::StoreFull)),
            Err(error) => Verdict::Blocked(Block::Refused(Refused::StoreUnavailable(error))),
        }
    }

    /// Asks the store whatever is still to be asked.
    pub(super) fn settle(self: Arc<Self>, attempt: Attempt, verdict: Verdict) -> BoxFuture<Result<Execution, Block>> {
        Box::pin(async move {
            let mut verdict = verdict;
            loop {
                verdict = match verdict {
                    Verdict::Run(execution) => return Ok(execution),
                    Verdict::Blocked(block) => return Err(block),
                    Verdict::Asking(asked) => self.judge(attempt, asked.await),
                    Verdict::GiveBack(claim) => {
                        ending::release(attempt.key, claim).await;
                        Verdict::Blocked(Block::Refused(Refused::TooManyExecutions))
                    }
                    Verdict::TakeOver(mut claim, place) => match claim.renew(self.lease).await {
                        Ok(()) => Verdict::Run(self.execution(attempt, claim, place, true)),
                        // Somebody else was first.
                        Err(StoreError::Lost) => Verdict::Asking(self.ask(attempt)),
                        Err(error) => Verdict::Blocked(Block::Refused(Refused::StoreUnavailable(error))),
                    },
                };
            }
        })
    }

    fn execution(self: &Arc<Self>, attempt: Attempt, claim: BoxClaim, place: Place, took_over: bool) -> Execution {
        let renewal = self.duties.renew.then(|| Renewal { lease: self.lease, lost: watch::Sender::new(false) });
        Execution { attempt, claim, took_over, renewal, core: Arc::clone(self), place }
    }
}

//! An operator's word on an outcome that nobody knows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::begin::Asked;
use super::inspect::{Inspection, State};
use super::{Attempt, Core, Idempotency};
use crate::ending::{self, End, Ending, STEP, within};
use crate::erased::Granted;
use crate::execution::Outcome;
use crate::key::{Key, StorageKey};
use crate::origin::Origin;
use crate::rules::{Abandoned, Rules};
use crate::scope::Scope;
use crate::store::{Begin, StoreError};

/// How often a key is looked at anew that changed hands between two steps.
const LOOKS: usize = 4;

/// What came of settling a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The outcome was unknown, and is known now.
    Now,
    /// A record stands there already that is just what this would have left: of an earlier try, most likely.
    Already,
}

/// Why a key was not settled. Nothing was changed, unless it says that this is not known.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SettleError {
    /// Nothing stands under the key: the next request runs the body.
    Free,
    /// The outcome is not unknown: the body runs, or another record stands there.
    Stands(State),
    /// A record that lives for no time would leave the key free. To let a retry run the body, settle with [`Outcome::Release`].
    ZeroTtl,
    /// The store could not be asked, or not be understood. Whether the key was settled is not known, so inspect it.
    Store(StoreError),
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("the key is free, so there is nothing to settle"),
            Self::Stands(State::OutcomeUnknown) => f.write_str("somebody else had the claim meanwhile; try again"),
            Self::Stands(state) => write!(f, "the key is {state}, and only an unknown outcome can be settled"),
            Self::ZeroTtl => f.write_str("a record must live for some time; to let a retry run, settle it as released"),
            Self::Store(_) => f.write_str("the store failed, and whether the key was settled is not known; inspect it"),
        }
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            Self::Free | Self::Stands(_) | Self::ZeroTtl => None,
        }
    }
}

impl From<StoreError> for SettleError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Idempotency {
    /// Says what became of an execution whose outcome is unknown, for somebody who has found out: retries get the answer
    /// ([`Outcome::Answer`], in the adapter's format), or are refused because there is none ([`Outcome::NotReplayable`]), or run
    /// the body again ([`Outcome::Release`]).
    ///
    /// A record lives from now on for as long as those of its endpoint do, or for a day where the claim does not say;
    /// [`settle_for`](Self::settle_for) says otherwise. It keeps the origin of the execution that it is about.
    ///
    /// Only an unknown outcome is settled. The claim is taken over first, as by a second run: of two operators one settles it,
    /// and an owner that was only slow does so before that or not at all. One call settles one execution: the one that it finds
    /// first. To repeat it with an answer, or as not replayable, is safe. Released, the key is free for another execution, whose
    /// outcome may become unknown in turn; inspect the key again before settling that.
    ///
    /// ```
    /// # async fn example(idempotency: idem_runtime::Idempotency, key: idem_runtime::Key) {
    /// use idem_runtime::{Outcome, Scope, SettleError};
    ///
    /// // The order is not in the books, so it may be placed again.
    /// match idempotency.settle(&Scope::GLOBAL, &key, Outcome::Release).await {
    ///     Ok(_) => println!("a retry runs the body"),
    ///     Err(SettleError::Stands(state)) => println!("no need: it is {state}"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// What stands there instead, or what the store failed with.
    ///
    /// # Cancel safety
    /// Nothing that happens to the returned future stops it once it was polled.
    pub async fn settle(&self, scope: &Scope, key: &Key, outcome: Outcome) -> Result<Settled, SettleError> {
        self.settle_within(scope, key, outcome, None).await
    }

    /// As [`settle`](Self::settle), with a record that lives for `ttl` from now.
    ///
    /// # Errors
    /// As for [`settle`](Self::settle), and [`SettleError::ZeroTtl`].
    pub async fn settle_for(
        &self,
        scope: &Scope,
        key: &Key,
        outcome: Outcome,
        ttl: Duration,
    ) -> Result<Settled, SettleError> {
        self.settle_within(scope, key, outcome, Some(ttl)).await
    }

    async fn settle_within(
        &self,
        scope: &Scope,
        key: &Key,
        outcome: Outcome,
        ttl: Option<Duration>,
    ) -> Result<Settled, SettleError> {
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(SettleError::ZeroTtl);
        }
        let core = &self.handle.core;
        let settling = Arc::clone(core).settle(StorageKey::new(scope, key), outcome, ttl);
        core.spawn(Box::pin(settling)).await.unwrap_or_else(|_| {
            Err(SettleError::Store(StoreError::unavailable("the task that settled the key was torn down")))
        })
    }
}

impl Core {
    async fn settle(
        self: Arc<Self>,
        key: StorageKey,
        outcome: Outcome,
        ttl: Option<Duration>,
    ) -> Result<Settled, SettleError> {
        // The execution that the operator has decided about; nothing is said of any later one.
        let mut decided = None;
        for _ in 0..LOOKS {
            let found = self.inspect(key).await?.ok_or(SettleError::Free)?;
            let execution = found.origin().map(Origin::execution);
            if *decided.get_or_insert(execution) != execution {
                return Err(SettleError::Stands(found.state()));
            }
            if found.state() != State::OutcomeUnknown {
                return if is_already(&found, &outcome) {
                    Ok(Settled::Already)
                } else {
                    Err(SettleError::Stands(found.state()))
                };
            }
            let ttl = ttl.or(found.origin().map(Origin::ttl)).unwrap_or(Rules::DEFAULT.ttl);
            let rules = Rules { ttl, wait: None, abandoned: Abandoned::Rerun };
            let attempt = Attempt::new(key, *found.fingerprint(), rules);
            let asked = self.ask_for(&attempt, found.origin().cloned());
            let mut claim = match self.answer_to(key, asked).await? {
                Begin::Abandoned(granted) => granted.claim,
                Begin::Claimed(granted) => {
                    ending::release(key, granted.claim).await;
                    return Err(SettleError::Free);
                }
                // It is another's by now, and the next look says how it stands.
                Begin::InFlight(_) | Begin::Completed(_) => continue,
            };
            match within(STEP, claim.renew(self.lease)).await {
                Ok(()) => {}
                // Somebody else was first.
                Err(StoreError::Lost) => continue,
                Err(error) => return Err(error.into()),
            }
            let outcome_name = name(&outcome);
            let end = End::of(outcome, attempt.fingerprint, found.origin(), ttl, &*self.clock);
            let lease = self.duties.renew.then_some(self.lease);
            match Ending::begin(key, claim, end, lease).finish().await {
                Ok(()) => {}
                // It took so long that somebody else has the claim.
                Err(StoreError::Lost) => {
                    let found = self.inspect(key).await?.ok_or(SettleError::Free)?;
                    return Err(SettleError::Stands(found.state()));
                }
                Err(error) => return Err(error.into()),
            }
            tracing::info!(%key, endpoint = found.endpoint(), outcome = outcome_name, "an operator settled an unknown outcome");
            return Ok(Settled::Now);
        }
        Err(StoreError::unavailable("the key changed hands again and again").into())
    }

    /// What the store answers, in time. A claim that comes late goes back.
    async fn answer_to(self: &Arc<Self>, key: StorageKey, mut asked: Asked) -> Result<Begin<Granted>, StoreError> {
        if let Ok(begun) = timeout(STEP, &mut asked).await {
            return begun;
        }
        let lease = self.lease;
        drop(self.spawn(Box::pin(async move {
            if let Ok(Ok(Begin::Claimed(late))) = timeout(lease, asked).await {
                ending::release(key, late.claim).await;
            }
        })));
        Err(ending::silent(STEP))
    }
}

/// An outcome as a log says it.
fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Answer(_) => "an answer",
        Outcome::NotReplayable => "not replayable",
        Outcome::Release => "released",
    }
}

/// Whether what stands there is what `outcome` would leave.
fn is_already(found: &Inspection, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answer(draft) => found.answer().is_some_and(|answer| *answer == draft.bytes()),
        Outcome::NotReplayable => found.state() == State::NotReplayable,
        Outcome::Release => false,
    }
}

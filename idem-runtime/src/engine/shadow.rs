//! Shadow mode: what would happen to a request, while nothing is enforced.
//!
//! The body runs in the request's own future, as it would without the engine, and never waits for the store: what the store
//! says of the key is only told, and where it grants a claim, what the body answers is recorded under it, so that a retry
//! would find it. Of two requests with one key both bodies run, and the one with the claim is recorded.

use std::fmt;
use std::future::ready;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::begin::Asked;
use super::{Attempt, Core, Idempotency, Refused};
use crate::counted;
use crate::ending::{self, End, Ending, STEP};
use crate::erased::{Answering, Granted};
use crate::execution::{Execution, Outcome, at_once};
use crate::rules::Abandoned;
use crate::store::{Begin, StoreError};

/// What would have happened to a request in shadow mode.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Would {
    /// Its body would have run.
    Execute,
    /// A record would have answered it.
    Replay,
    /// It would have waited for the execution in flight.
    Wait,
    /// It would have been refused.
    Refuse(Refused),
}

/// The shadow of an execution: told how the body ended, it records that where it has the claim. Dropped untold, since the
/// client hung up and the body with it, it gives the claim back.
#[must_use = "a shadow that is dropped records nothing"]
pub struct Shadow(State);

enum State {
    /// It has no claim, and nothing is recorded.
    Bare,
    /// It has the claim.
    Claimed(Box<Execution>),
    /// A task has the claim, or is asking for it.
    Told(oneshot::Sender<Outcome>),
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shadow(..)")
    }
}

impl Shadow {
    /// The body has ended. Neither this nor a drop ever waits: what the store does not do at once, a task goes on with.
    pub fn ended(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        match mem::replace(&mut self.0, State::Bare) {
            State::Bare => {}
            // Nobody listens where the claim was not granted.
            State::Told(task) => drop(task.send(outcome)),
            State::Claimed(execution) => {
                let Execution { key, fingerprint, rules, claim, origin, core, place, .. } = *execution;
                let end = End::of(outcome, fingerprint, Some(&origin), rules.ttl, &*core.clock);
                let mut ending = Ending::begin(key, claim, end, None);
                let over = pin!(ending.is_over()).poll(&mut Context::from_waker(Waker::noop()));
                // Without a runtime there is none to go on in, and no timer either: the claim stays.
                if over != Poll::Ready(true) && Handle::try_current().is_ok() {
                    drop(core.spawn(Box::pin(async move {
                        let _place = place;
                        // Whatever goes wrong is logged.
                        let _ = ending.finish().await;
                    })));
                }
            }
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.end(Outcome::Release);
    }
}

impl Idempotency {
    /// Looks at the key as [`run`](Self::run) would, but enforces nothing: the caller runs its body in any case, and says
    /// with [`Shadow::ended`] how it ended.
    ///
    /// `report` is told once what would have happened: before this returns where the store answers at once, as one in memory
    /// does, and otherwise later, from a task. A store that does not answer costs a task for five seconds, but no time of the
    /// request. [`executions`](Self::executions) does not count what runs in shadow mode, and
    /// [`max_executions`](crate::IdempotencyBuilder::max_executions) bounds it by itself: bodies over that number run as well,
    /// and are not recorded.
    ///
    /// # Cancel safety
    /// It never waits, so there is no point to cancel it at.
    pub async fn shadow(&self, attempt: Attempt, report: impl FnOnce(Would) + Send + 'static) -> Shadow {
        let core = &self.handle.core;
        let mut asked = core.ask(&attempt);
        let asked = match at_once(&mut asked).await {
            None => asked,
            Some(Ok(Begin::Claimed(granted))) if !core.duties.renew => {
                let Some(place) = core.shadows.take_uncounted() else {
                    report(Would::Refuse(Refused::TooManyExecutions));
                    drop(core.spawn(Box::pin(ending::release(attempt.key, granted.claim))));
                    return Shadow(State::Bare);
                };
                report(Would::Execute);
                return Shadow(State::Claimed(Box::new(core.execution(&attempt, granted, place, false))));
            }
            // Whoever takes over or renews a claim has to wait for the store.
            Some(Ok(begun @ (Begin::Claimed(_) | Begin::Abandoned(_)))) => Answering::new(ready(Ok(begun))),
            Some(blocked) => {
                report(would(&attempt, &blocked));
                return Shadow(State::Bare);
            }
        };
        let (body, told) = oneshot::channel();
        drop(core.spawn(Box::pin(Arc::clone(core).follow(attempt, asked, report, told))));
        Shadow(State::Told(body))
    }
}

impl Core {
    /// Gets the claim, keeps it while the body runs, and ends it as the body ended.
    async fn follow(
        self: Arc<Self>,
        attempt: Attempt,
        mut asked: Asked,
        report: impl FnOnce(Would),
        mut told: oneshot::Receiver<Outcome>,
    ) {
        let Ok(begun) = timeout(STEP, &mut asked).await else {
            report(Would::Refuse(Refused::StoreUnavailable(ending::silent(STEP))));
            // A claim that comes late is nobody's.
            if let Ok(Ok(Begin::Claimed(late))) = timeout(self.lease, asked).await {
                ending::release(attempt.key, late.claim).await;
            }
            return;
        };
        if matches!(begun, Ok(Begin::Abandoned(_))) {
            counted::abandoned();
        }
        let mut would = would(&attempt, &begun);
        let place = if matches!(would, Would::Execute) { self.shadows.take_uncounted() } else { None };
        if matches!(would, Would::Execute) && place.is_none() {
            would = Would::Refuse(Refused::TooManyExecutions);
        }
        report(would);
        let (granted, place, took_over) = match (begun, place) {
            (Ok(Begin::Claimed(granted)), Some(place)) => (granted, place, false),
            (Ok(Begin::Claimed(granted)), None) => return ending::release(attempt.key, granted.claim).await,
            (Ok(Begin::Abandoned(granted)), Some(place)) => match self.taken_over(granted).await {
                Some(granted) => (granted, place, true),
                None => return,
            },
            // An abandoned claim is not given back: an earlier body may have run under it.
            _ => return,
        };
        let mut execution = self.execution(&attempt, granted, place, took_over);
        let outcome = execution.keep(pin!(async { (&mut told).await.unwrap_or(Outcome::Release) })).await;
        // Whatever goes wrong is logged.
        let _ = execution.end(outcome).await;
    }

    async fn taken_over(&self, mut granted: Granted) -> Option<Granted> {
        let renewed = timeout(STEP, granted.claim.renew(self.lease)).await;
        matches!(renewed, Ok(Ok(()))).then_some(granted)
    }
}

/// What follows from the store's answer.
fn would(attempt: &Attempt, begun: &Result<Begin<Granted>, StoreError>) -> Would {
    let differs = |fingerprint| fingerprint != attempt.fingerprint;
    Would::Refuse(match begun {
        Ok(Begin::Claimed(_)) => return Would::Execute,
        Ok(Begin::Abandoned(_)) if attempt.rules.abandoned == Abandoned::Rerun => return Would::Execute,
        Ok(Begin::Abandoned(_)) => Refused::OutcomeUnknown,
        Ok(Begin::InFlight(fingerprint)) if differs(*fingerprint) => Refused::Mismatch,
        Ok(Begin::InFlight(_)) if attempt.rules.wait.is_some() => return Would::Wait,
        Ok(Begin::InFlight(_)) => Refused::InFlight,
        Ok(Begin::Completed(record)) if differs(*record.fingerprint()) => Refused::Mismatch,
        Ok(Begin::Completed(record)) => match record.read() {
            Ok(content) if content.answer.is_some() => return Would::Replay,
            Ok(_) => Refused::NotReplayable,
            Err(undecodable) => Refused::StoreUnavailable(StoreError::unreadable(undecodable)),
        },
        Err(StoreError::Full) => Refused::StoreFull,
        Err(error) => Refused::StoreUnavailable(error.clone()),
    })
}

#[cfg(test)]
mod tests;

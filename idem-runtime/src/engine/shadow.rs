//! Shadow mode: what would happen to a request, while nothing is enforced.
//!
//! The handler runs in the request's own future, as it would without the engine, and never waits for the store. What the store
//! reports is only counted. If it grants a claim, the handler's response is recorded under it, so that a retry would find it. If
//! two requests have the same key, both handlers run, and the response of the one with the claim is recorded.

use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::begin::BeginFuture;
use super::decide::{Blocked, Decision};
use super::execute::ClaimedExecution;
use super::{Core, Idempotency, poll_once};
use crate::attempt::Attempt;
use crate::execution_info::ExecutionInfo;
use crate::outcome::{Outcome, RefusalReason};
use crate::panics::discard;

/// What would have happened to a request in shadow mode.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ShadowOutcome {
    /// Its handler would have run.
    Execute,
    /// It would have got a replay.
    Replay,
    /// It would have waited for the execution in flight.
    Wait,
    /// It would have been refused.
    Refuse(RefusalReason),
}

impl ShadowOutcome {
    fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Run(_) | Decision::TakeOver(_) | Decision::RunWithoutStore(_) => Self::Execute,
            Decision::Blocked(Blocked::Replay(_)) => Self::Replay,
            Decision::Blocked(Blocked::Wait) => Self::Wait,
            Decision::Blocked(Blocked::Mismatch) => Self::Refuse(RefusalReason::Mismatch),
            Decision::Blocked(Blocked::Refuse(reason)) => Self::Refuse(reason.clone()),
        }
    }
}

/// The shadow of an execution: it records how the handler ended, if it has the claim. If it is dropped before, since the client
/// hung up and its handler was cut off, it releases the claim.
#[must_use = "a shadow that is dropped records nothing"]
pub struct Shadow(ShadowState);

enum ShadowState {
    /// There is no claim to end.
    Unclaimed,
    /// The claim is here.
    Claimed(Box<ClaimedExecution>),
    /// A task has the claim, or is asking for it.
    InTask(oneshot::Sender<Outcome>),
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shadow(..)")
    }
}

impl Shadow {
    /// The handler has ended. Neither this nor a drop ever waits: what the store does not do at once, a task continues.
    pub fn ended(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        match mem::replace(&mut self.0, ShadowState::Unclaimed) {
            ShadowState::Unclaimed => {}
            // The task is gone if the claim was not granted.
            ShadowState::InTask(task) => drop(task.send(outcome)),
            ShadowState::Claimed(execution) => execution.end_in_background(outcome),
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.end(Outcome::Release);
    }
}

/// Called once with what would have happened.
type Report = Box<dyn FnOnce(ShadowOutcome) + Send>;

impl Idempotency {
    /// Asks for the key as [`run`](Self::run) would, but enforces nothing: the caller runs its handler in any case, and reports
    /// with [`Shadow::ended`] how it ended.
    ///
    /// `report` is called once with what would have happened: before this returns if the store replies at once, as one in memory
    /// does, and otherwise later, from a task. A store that does not reply costs a task for five seconds, but no time of the
    /// request. [`executions`](Self::executions) does not count what runs in shadow mode, and
    /// [`max_executions`](crate::IdempotencyBuilder::max_executions) limits it separately: handlers above that number run as well,
    /// and are not recorded.
    ///
    /// # Cancel safety
    /// It never waits, so it cannot be cancelled half-way.
    pub async fn shadow(&self, attempt: Attempt, report: impl FnOnce(ShadowOutcome) + Send + 'static) -> Shadow {
        let core = &self.handle.core;
        let report: Report = Box::new(|outcome| {
            // Nothing is enforced, so neither the request nor the claim may suffer from it.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| report(outcome))) {
                discard(panic);
                tracing::error!("the report of a request in shadow mode panicked; the request goes on");
            }
        });
        let info = ExecutionInfo::start(&attempt, core.clock.now());
        let (mut begin, asked_at) = (core.begin(&attempt, info.clone()), Instant::now());
        let shadowed = match poll_once(&mut begin).await {
            None => Shadowed::Asked(begin),
            Some(begun) => match core.decide(&attempt, begun) {
                Decision::Run(claim) if core.capabilities.claims_live_with_owner => {
                    let Some(permit) = core.shadow_permit() else {
                        report(ShadowOutcome::Refuse(RefusalReason::TooManyExecutions));
                        core.release(&attempt, claim);
                        return Shadow(ShadowState::Unclaimed);
                    };
                    report(ShadowOutcome::Execute);
                    let execution = ClaimedExecution::new(core, &attempt, &info, claim, permit, asked_at);
                    return Shadow(ShadowState::Claimed(Box::new(execution)));
                }
                // To take over or to renew a claim, a task has to wait for the store.
                decision @ (Decision::Run(_) | Decision::TakeOver(_)) => Shadowed::Decided(decision),
                Decision::Blocked(Blocked::Mismatch) => {
                    let mut mismatch = Box::pin(Arc::clone(core).mismatch(attempt));
                    match poll_once(&mut mismatch).await {
                        Some(reason) => report(ShadowOutcome::Refuse(reason)),
                        None => drop(core.spawn(async move { report(ShadowOutcome::Refuse(mismatch.await)) })),
                    }
                    return Shadow(ShadowState::Unclaimed);
                }
                decision => {
                    report(ShadowOutcome::of(&decision));
                    return Shadow(ShadowState::Unclaimed);
                }
            },
        };
        let (handler, ended) = oneshot::channel();
        drop(core.spawn(Arc::clone(core).follow(attempt, info, shadowed, asked_at, report, ended)));
        Shadow(ShadowState::InTask(handler))
    }
}

/// What the task of a shadow starts from.
enum Shadowed {
    Asked(BeginFuture),
    Decided(Decision),
}

impl Core {
    /// Gets the claim, for which the store was asked at `asked_at`, keeps it while the handler runs, and ends it with the handler's outcome.
    async fn follow(
        self: Arc<Self>,
        attempt: Attempt,
        info: ExecutionInfo,
        shadowed: Shadowed,
        mut asked_at: Instant,
        report: Report,
        ended: oneshot::Receiver<Outcome>,
    ) {
        let decision = match shadowed {
            Shadowed::Asked(begin) => {
                let begun = self.begun_in_time(&attempt, begin, asked_at).await;
                self.decide(&attempt, begun)
            }
            Shadowed::Decided(decision) => decision,
        };
        let outcome = ShadowOutcome::of(&decision);
        let (mut claim, take_over) = match decision {
            Decision::Run(claim) => (claim, false),
            Decision::TakeOver(claim) => (claim, true),
            Decision::Blocked(Blocked::Mismatch) => return report(ShadowOutcome::Refuse(self.mismatch(attempt).await)),
            _ => return report(outcome),
        };
        let Some(permit) = self.shadow_permit() else {
            report(ShadowOutcome::Refuse(RefusalReason::TooManyExecutions));
            // An abandoned claim is not released: its handler may have run.
            if !take_over {
                self.release(&attempt, claim);
            }
            return;
        };
        report(outcome);
        if take_over {
            let Ok(asked_now) = self.take_over(&attempt.key, &mut claim).await else { return };
            asked_at = asked_now;
        }
        let mut execution = ClaimedExecution::new(&self, &attempt, &info, claim, permit, asked_at);
        let outcome = execution.keep_claim(Box::pin(async { ended.await.unwrap_or(Outcome::Release) })).await;
        // Failures are logged.
        let _ = execution.end(outcome).await;
    }
}

#[cfg(test)]
mod tests;

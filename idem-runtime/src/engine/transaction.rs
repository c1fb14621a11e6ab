//! An attempt whose claim is a transaction of the handler: it begins in the task of the handler, needs no renewal, and ends before
//! the caller gets the response.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::begin::{STORE_TIMEOUT, within};
use super::complete::{ClaimCompletion, ClaimEnd};
use super::decide::{Blocked, Decision, decide};
use super::execute::ClaimedExecution;
use super::wait::InFlightWait;
use super::{Core, Idempotency, for_at_most};
use crate::attempt::Attempt;
use crate::caller_transaction::CallerTransaction;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::outcome::{Executed, Outcome, Recording, RefusalReason, RunResult};
use crate::store::BeginOptions;
use crate::telemetry::claim::ClaimStep;
use crate::telemetry::span::HandlerTimer;
use crate::transaction::TransactionSlot;

impl Idempotency {
    /// As [`run`](Self::run), with a claim that is the transaction which `slot` wants. It is in the slot before the handler runs,
    /// and has ended before the response is returned.
    ///
    /// # Errors
    /// As for [`run`](Self::run). [`RefusalReason::StoreUnavailable`] also means that the handler ran, and that its transaction was
    /// rolled back or will be found by a retry. With a [fault](TransactionSlot::fault) in the slot the code of the service is
    /// wrong.
    #[doc(hidden)]
    pub async fn run_in_transaction<H, F, T>(
        &self,
        attempt: Attempt,
        slot: TransactionSlot,
        mut handler: H,
    ) -> Result<RunResult<T>, RefusalReason>
    where
        H: FnOnce() -> F + Send + 'static,
        F: Future<Output = Executed<T>> + Send + 'static,
        T: Send + 'static,
    {
        let core = &self.handle.core;
        let mut waiter: Option<InFlightWait> = None;
        loop {
            let time_left = waiter.as_ref().map(InFlightWait::time_left);
            // In a task from the start: a connection on which the beginning is cut in half cannot be used again.
            let task = core.spawn({
                let (core, slot) = (Arc::clone(core), slot.clone());
                async move {
                    match core.start_in_transaction(&attempt, &slot, time_left).await {
                        Ok(execution) => Ok(execution.run_in_transaction(slot, handler).await),
                        Err(blocked) => Err((blocked, handler)),
                    }
                }
            });
            let (blocked, unused) = match task.await {
                Ok(Ok(ran)) => return ran.map(RunResult::Executed),
                Ok(Err(blocked)) => blocked,
                // The task was torn down together with the async runtime.
                Err(_) => return Err(RefusalReason::OutcomeUnknown),
            };
            handler = unused;
            if let Some(result) = core.blocked(blocked, &attempt, &mut waiter).await {
                return result.map(RunResult::Replayed);
            }
        }
    }

    /// As [`run`](Self::run), in the caller's future: claim and record are rows of the caller's transaction. Unless the handler ran
    /// and is recorded, the transaction is left as it was.
    pub(crate) async fn run_in_transaction_of_caller<X: CallerTransaction, T>(
        &self,
        attempt: Attempt,
        transaction: &mut X,
        handler: impl AsyncFnOnce(&mut X) -> Executed<T>,
    ) -> Result<RunResult<T>, RefusalReason> {
        let core = &self.handle.core;
        let (mut waiter, mut until) = (None, None);
        loop {
            let info = ExecutionInfo::start(&attempt, core.clock.now());
            let options = BeginOptions::new(core.lease, attempt.rules.ttl).with_info(info.clone());
            let begun = transaction.begin(&attempt.key, &attempt.fingerprint, &options).await;
            let is_take_over = match core.decide(&attempt, begun) {
                Decision::Run(()) => false,
                Decision::TakeOver(()) => true,
                Decision::Blocked(blocked) => {
                    if let Blocked::Refuse(_) = blocked {
                        // An abandoned claim is not taken over, so the transaction must not keep it.
                        let _ = transaction.undo().await;
                    }
                    match core.blocked(blocked, &attempt, &mut waiter).await {
                        Some(result) => return result.map(RunResult::Replayed),
                        None => continue,
                    }
                }
                Decision::RunWithoutStore(error) => return Err(RefusalReason::StoreUnavailable(error)),
            };
            let Some(_permit) = core.permit() else {
                // Nothing has happened.
                let _ = transaction.undo().await;
                RefusalReason::TooManyExecutions.count_if_full();
                return Err(RefusalReason::TooManyExecutions);
            };
            if is_take_over {
                match transaction.take_over().await {
                    Ok(()) => {}
                    // Another request was first, so the store is asked again.
                    Err(StoreError::Lost) => {
                        if Instant::now() < *until.get_or_insert_with(|| Instant::now() + STORE_TIMEOUT) {
                            continue;
                        }
                        return Err(RefusalReason::InFlight);
                    }
                    Err(error) => return Err(RefusalReason::StoreUnavailable(error)),
                }
            }
            let timer = HandlerTimer::protected(&info);
            let Executed { response, recording } = handler(transaction).await;
            drop(timer);
            let outcome = match recording {
                Recording::Done(outcome) => outcome,
                Recording::Live(_) => Outcome::Release,
            };
            let ended = match ClaimEnd::new(outcome, attempt.fingerprint, Some(&info), attempt.rules.ttl, &*core.clock)
            {
                ClaimEnd::Complete(record, ttl) => transaction.complete(&record, ttl).await,
                ClaimEnd::Release => match transaction.undo().await {
                    Err(StoreError::Lost) => Err(StoreError::Lost),
                    // The connection is broken, or a statement failed: nothing of the transaction can be committed.
                    Ok(()) | Err(_) => Ok(()),
                },
            };
            return match ended {
                Ok(()) => Ok(RunResult::Executed(response)),
                Err(StoreError::Lost) => Err(RefusalReason::OutcomeUnknown),
                Err(error) => Err(RefusalReason::StoreUnavailable(error)),
            };
        }
    }
}

impl Core {
    /// Takes every step until the handler may start, or is blocked. The store limits the time: a transaction may queue. `time_left` is set
    /// if the request already waits for another execution: when it is up, the request is refused as in flight.
    pub(super) async fn start_in_transaction(
        self: &Arc<Self>,
        attempt: &Attempt,
        slot: &TransactionSlot,
        time_left: Option<Duration>,
    ) -> Result<ClaimedExecution, Blocked> {
        let unavailable = |error| Blocked::Refuse(RefusalReason::StoreUnavailable(error));
        let mut until = time_left.map(|time_left| Instant::now() + time_left);
        loop {
            let info = ExecutionInfo::start(attempt, self.clock.now());
            let options = BeginOptions::new(self.lease, attempt.rules.ttl).with_info(info.clone());
            let begin = self.begin_with(attempt, options.in_transaction(slot.clone()));
            let begun = match until {
                None => begin.await,
                // One that is dropped leaves the queue, or is rolled back.
                Some(until) => match for_at_most(until.saturating_duration_since(Instant::now()), begin).await {
                    Some(begun) => begun,
                    None => return Err(Blocked::Refuse(RefusalReason::InFlight)),
                },
            };
            // Without a key there is no claim to report, and no execution that would take a permit.
            let is_unkeyed = slot.is_unkeyed();
            let decision = if is_unkeyed { decide(attempt, begun) } else { self.decide(attempt, begun) };
            let (claim, permit) = match decision {
                Decision::Run(claim) => {
                    let permit = if is_unkeyed { None } else { self.permit() };
                    if permit.is_none() && !is_unkeyed {
                        // Before the refusal is sent, so that a retry does not find the key in flight. Failures are logged.
                        let _ = ClaimCompletion::release(attempt, claim, self.lease).finish(Arc::clone(self)).await;
                        return Err(Blocked::Refuse(RefusalReason::TooManyExecutions));
                    }
                    (claim, permit)
                }
                Decision::TakeOver(mut claim) => {
                    // Without a permit the claim stays abandoned: its handler may have run.
                    let Some(permit) = self.permit() else {
                        return Err(Blocked::Refuse(RefusalReason::TooManyExecutions));
                    };
                    match within(STORE_TIMEOUT, claim.renew(self.lease)).await {
                        Ok(()) => {
                            ClaimStep::TakenOver.report(&attempt.key);
                            (claim, Some(permit))
                        }
                        // Another request was first, so the store is asked again.
                        Err(StoreError::Lost) => {
                            until.get_or_insert_with(|| Instant::now() + STORE_TIMEOUT);
                            continue;
                        }
                        Err(error) => return Err(unavailable(error)),
                    }
                }
                // Without a claim there would be no transaction.
                Decision::RunWithoutStore(error) => return Err(unavailable(error)),
                Decision::Blocked(blocked) => return Err(blocked),
            };
            // A transaction needs no renewal, and may have queued: its claim begins now.
            let execution = ClaimedExecution::new(self, attempt, &info, claim, permit, Instant::now());
            return self.opened(execution, slot).await;
        }
    }

    /// Returns an execution whose transaction is in the slot. Otherwise the handler does not run.
    async fn opened(&self, execution: ClaimedExecution, slot: &TransactionSlot) -> Result<ClaimedExecution, Blocked> {
        if slot.was_opened() {
            return Ok(execution);
        }
        slot.set_fault(
            "the store of its engine cannot open the transaction; mount an engine over a store that was made with `from_pool`, of \
             the pool of the same database",
        );
        // Nothing has happened. Failures are logged.
        let _ = execution.end(Outcome::Release).await;
        let error = StoreError::unavailable("the store opens no such transactions");
        Err(Blocked::Refuse(RefusalReason::StoreUnavailable(error)))
    }
}

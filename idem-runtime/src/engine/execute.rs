//! One execution: the handler runs under its claim, which is renewed meanwhile, and then the claim ends.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::begin::Permit;
use super::complete::{ClaimCompletion, ClaimEnd};
use super::dyn_store::{BoxClaim, BoxFuture};
use super::renew::Renewal;
use super::{Core, for_at_most};
use crate::attempt::{Abandoned, Attempt, Rules};
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::lease::Lease;
use crate::outcome::{Executed, Outcome, RecordedStream, Recording, RefusalReason};
use crate::telemetry::span::HandlerTimer;
use crate::transaction::TransactionSlot;

/// How long a slow store may delay a response. After that the client gets it, and the completion continues.
const MAX_RESPONSE_DELAY: Duration = Duration::from_secs(1);

/// A claim, and what the handler needs to run under it.
pub(super) struct ClaimedExecution {
    pub(super) core: Arc<Core>,
    pub(super) key: StorageKey,
    fingerprint: Fingerprint,
    rules: Rules,
    info: ExecutionInfo,
    claim: BoxClaim,
    /// `None` if the store's claims need no renewal.
    renewal: Option<Renewal>,
    /// `None` once the claim ends, and for a transaction without a claim.
    permit: Option<Permit>,
}

impl ClaimedExecution {
    /// Makes an execution under `claim`. The store was asked for it at `asked_at`: its lease counts from then on.
    pub(super) fn new(
        core: &Arc<Core>,
        attempt: &Attempt,
        info: &ExecutionInfo,
        claim: BoxClaim,
        permit: impl Into<Option<Permit>>,
        asked_at: Instant,
    ) -> Self {
        let renewal = (!core.capabilities.claims_live_with_owner).then(|| Renewal::new(core.lease, asked_at));
        if let Some(renewal) = &renewal {
            core.warn_of_round_trip(asked_at, renewal.bounded_lease());
        }
        Self {
            core: Arc::clone(core),
            key: attempt.key,
            fingerprint: attempt.fingerprint,
            rules: attempt.rules,
            info: info.clone(),
            claim,
            renewal,
            permit: permit.into(),
        }
    }

    /// Returns what the handler can learn about its claim.
    fn lease(&self) -> Lease {
        self.renewal.as_ref().map_or_else(Lease::default, Renewal::watch)
    }

    /// Runs the handler to its end and ends the claim. Returns the response, which a retry finds recorded. The client may be
    /// gone.
    ///
    /// `None` if another run has taken over the claim; a retry gets the response of that one.
    #[expect(clippy::manual_async_fn, reason = "an async function holds its arguments twice")]
    pub(super) fn run<H, F, T>(mut self, handler: H) -> impl Future<Output = Option<T>>
    where
        H: FnOnce(Lease) -> F,
        F: Future<Output = Executed<T>> + Send + 'static,
        T: Send + 'static,
    {
        async move {
            let timer = HandlerTimer::protected(&self.info);
            let Executed { response, recording } = if self.renewal.is_some() {
                self.keep_claim(Box::pin(handler(self.lease()))).await
            } else {
                // The future is made here: as an argument, this future would hold it twice.
                pin!(handler(Lease::default())).await
            };
            drop(timer);
            let reruns = self.rules.abandoned == Abandoned::Rerun;
            // A renewal may have found it out.
            let was_lost = reruns && self.lease().is_lost();
            match recording {
                Recording::Done(outcome) => {
                    let is_lost = match self.end(outcome).await {
                        Some(Ok(())) => false,
                        Some(Err(StoreError::Lost)) => reruns,
                        Some(Err(_)) | None => was_lost,
                    };
                    (!is_lost).then_some(response)
                }
                Recording::Live(recorded) => {
                    let core = Arc::clone(&self.core);
                    drop(core.spawn(async move {
                        let RecordedStream { outcome, delivery } = self.keep_claim(recorded).await;
                        let end = self.claim_end(outcome);
                        let content = end.content();
                        let permit = Arc::new(self.permit.take());
                        // Failures are logged.
                        let _ = self.end_with(end, Arc::clone(&permit)).await;
                        if let Some(delivery) = delivery {
                            // A stream that is not read takes memory, so it takes the place of an execution.
                            delivery.recorded(content).await;
                        }
                        drop(permit);
                    }));
                    (!was_lost).then_some(response)
                }
            }
        }
    }

    /// As [`run`](Self::run), with a claim that is the transaction in `slot`. The response waits for its end: until the commit is
    /// confirmed, nothing has happened. Without a key there is no claim, and neither this nor the handler is reported: the adapter has
    /// counted the request as unprotected or as one in shadow mode.
    pub(super) async fn run_in_transaction<H, F, T>(self, slot: TransactionSlot, handler: H) -> Result<T, RefusalReason>
    where
        H: FnOnce() -> F,
        F: Future<Output = Executed<T>>,
    {
        let timer = (!slot.is_unkeyed()).then(|| HandlerTimer::protected(&self.info));
        let Executed { response, recording } = handler().await;
        drop(timer);
        let outcome = match recording {
            Recording::Done(outcome) => outcome,
            Recording::Live(_) => {
                slot.set_fault("its response was not whole when its transaction was to be committed");
                Outcome::Release
            }
        };
        let end = self.claim_end(outcome);
        // The claim limits its own time, and finds out itself whether a commit took effect that was not confirmed.
        let step = end.step();
        let ended = end.ask(self.claim).0.await;
        if ended.is_ok() && !slot.is_unkeyed() {
            step.report(&self.key);
        }
        match (ended, slot.fault()) {
            (Ok(()), None) => Ok(response),
            (Ok(()) | Err(StoreError::Lost), _) => Err(RefusalReason::OutcomeUnknown),
            (Err(error), _) => Err(RefusalReason::StoreUnavailable(error)),
        }
    }

    /// Ends the claim. Returns `None` if that takes too long, and continues in a task: a slow store is no reason to delay the
    /// response.
    ///
    /// What the store does at once is done when this returns. The future is small, since only the rest is boxed.
    pub(super) fn end(mut self, outcome: Outcome) -> impl Future<Output = Option<Result<(), StoreError>>> {
        let (end, permit) = (self.claim_end(outcome), self.permit.take());
        self.end_with(end, permit)
    }

    fn claim_end(&self, outcome: Outcome) -> ClaimEnd {
        ClaimEnd::new(outcome, self.fingerprint, Some(&self.info), self.rules.ttl, &*self.core.clock)
    }

    /// Ends the claim with `end`, as [`end`](Self::end) does with an outcome. The permit returns when the claim has ended.
    fn end_with<P: Send + 'static>(
        self,
        end: ClaimEnd,
        permit: P,
    ) -> impl Future<Output = Option<Result<(), StoreError>>> + use<P> {
        let Self { core, key, rules, claim, renewal, .. } = self;
        let mut completion = ClaimCompletion::begin(key, claim, end, renewal.map(|renewal| renewal.lease), rules.ttl);
        let rest = (!completion.is_done_at_once())
            .then(|| Box::pin(finish_in_time(core, completion, rules.abandoned, permit)));
        async move {
            match rest {
                None => Some(Ok(())),
                Some(rest) => rest.await,
            }
        }
    }

    /// Ends the claim from code that cannot wait. What the store does not do at once, a task continues.
    pub(super) fn end_in_background(self, outcome: Outcome) {
        let end = self.claim_end(outcome);
        let Self { core, key, rules, claim, renewal, permit, .. } = self;
        let mut completion = ClaimCompletion::begin(key, claim, end, renewal.map(|renewal| renewal.lease), rules.ttl);
        // Without a runtime there is no task and no timer: the claim stays.
        if !completion.is_done_at_once() && tokio::runtime::Handle::try_current().is_ok() {
            finish_in_task(&core, completion.finish(Arc::clone(&core)), permit);
        }
    }

    /// Awaits `work` and renews the lease meanwhile.
    pub(super) async fn keep_claim<R: Send + 'static>(&mut self, work: BoxFuture<R>) -> R {
        match &self.renewal {
            None => work.await,
            // Boxed, since it is large, and most executions need none.
            Some(renewal) => Box::pin(self.core.renewing(self.key, &mut self.claim, renewal, work)).await,
        }
    }
}

/// Waits for the end of a claim, for [`MAX_RESPONSE_DELAY`], or twice that if another run may take the claim over. Later a task
/// continues.
async fn finish_in_time(
    core: Arc<Core>,
    completion: ClaimCompletion,
    abandoned: Abandoned,
    permit: impl Send + 'static,
) -> Option<Result<(), StoreError>> {
    let mut finish = Box::pin(completion.finish(Arc::clone(&core)));
    let mut in_time = for_at_most(MAX_RESPONSE_DELAY, &mut finish).await;
    if in_time.is_none() && abandoned == Abandoned::Rerun {
        // If this process was suspended meanwhile, the store says in a moment whether its claim was taken over.
        in_time = for_at_most(MAX_RESPONSE_DELAY, &mut finish).await;
    }
    if in_time.is_none() {
        finish_in_task(&core, finish, permit);
    }
    in_time
}

/// Continues to end a claim in a task. The permit returns when it has ended.
fn finish_in_task(
    core: &Core,
    finish: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    permit: impl Send + 'static,
) {
    drop(core.spawn(async move {
        let _permit = permit;
        // Failures are logged.
        let _ = finish.await;
    }));
}

/// Runs a handler that has no claim to its end. Nothing is recorded.
pub(super) async fn unprotected<H, F, T>(core: Arc<Core>, permit: Permit, handler: H) -> Option<T>
where
    H: FnOnce(Lease) -> F,
    F: Future<Output = Executed<T>>,
{
    let timer = HandlerTimer::unprotected();
    let Executed { response, recording } = handler(Lease::default()).await;
    drop(timer);
    if let Recording::Live(recorded) = recording {
        // The stream to the client flows through the recording.
        drop(core.spawn(async move {
            let _permit = permit;
            let RecordedStream { outcome, delivery } = recorded.await;
            if let Some(delivery) = delivery {
                delivery.recorded(outcome.into_content()).await;
            }
        }));
    }
    Some(response)
}

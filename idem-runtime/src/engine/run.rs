//! One attempt, top to bottom: ask the store, decide, and run the handler, replay, wait or refuse.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::begin::{Next, Pending, Start};
use super::decide::Blocked;
use super::dyn_store::BoxFuture;
use super::execute::unprotected;
use super::wait::InFlightWait;
use super::{Core, Idempotency, poll_once};
use crate::attempt::Attempt;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::lease::Lease;
use crate::outcome::{Executed, Outcome, RefusalReason, Replay, RunResult};

/// What one try came to.
enum TryOutcome<H, T> {
    /// The handler ran. `None` if its response is lost: its task was torn down, or another run took over the claim.
    Ran(Option<T>),
    /// The handler did not start, and is returned.
    Blocked(Blocked, H),
}

impl Idempotency {
    /// Runs `handler` if the key is free. Otherwise returns a replay, or the reason why there is none.
    ///
    /// `handler` is called at most once, with the [lease](Lease) of its claim. Its future runs in its own task, and
    /// nothing that happens to the future of `run` stops it. It must not panic: a panic leaves the key abandoned, and the caller
    /// learns that the outcome is unknown.
    ///
    /// The future is moved several times, so box it if it is large.
    ///
    /// # Errors
    /// [`RefusalReason`] says why the handler did not run. Only [`RefusalReason::OutcomeUnknown`] may also mean that the task of
    /// the handler was torn down together with the async runtime, or that another run took over the claim
    /// ([`Abandoned::Rerun`](crate::Abandoned::Rerun)).
    ///
    /// # Cancel safety
    /// If the future is dropped before the store was asked, or while it waits for an execution in flight, the key stays as it was. If it is
    /// dropped while a remote store is being asked, the call continues: `handler` runs if the store grants the claim in time. A claim that
    /// is granted later is released. If it is dropped after `handler` has started, `handler` runs to its end.
    pub fn run<H, F, T>(
        &self,
        attempt: Attempt,
        mut handler: H,
    ) -> impl Future<Output = Result<RunResult<T>, RefusalReason>> + Send + use<H, F, T>
    where
        H: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Executed<T>> + Send + 'static,
        T: Send + 'static,
    {
        let core = Arc::clone(&self.handle.core);
        async move {
            let mut waiter: Option<InFlightWait> = None;
            loop {
                let time_left = waiter.as_ref().map(InFlightWait::time_left);
                let blocked = match core.try_once(&attempt, handler, time_left).await {
                    TryOutcome::Ran(Some(response)) => return Ok(RunResult::Executed(response)),
                    TryOutcome::Ran(None) => return Err(RefusalReason::OutcomeUnknown),
                    TryOutcome::Blocked(blocked, unused) => {
                        handler = unused;
                        blocked
                    }
                };
                if let Some(result) = core.blocked(blocked, &attempt, &mut waiter).await {
                    return result.map(RunResult::Replayed);
                }
            }
        }
    }
}

impl Core {
    /// Returns what a blocked request gets. `None` if it waited for the execution in flight, and the store is to be asked again.
    pub(super) async fn blocked(
        self: &Arc<Self>,
        blocked: Blocked,
        attempt: &Attempt,
        waiter: &mut Option<InFlightWait>,
    ) -> Option<Result<Replay, RefusalReason>> {
        Some(match blocked {
            Blocked::Replay(replay) => Ok(replay),
            Blocked::Refuse(reason) => {
                reason.count_if_full();
                Err(reason)
            }
            // Boxed, since it is large, and most requests do not need it.
            Blocked::Mismatch => Err(Box::pin(Arc::clone(self).mismatch(*attempt)).await),
            Blocked::Wait if self.wait(attempt, waiter).await => return None,
            Blocked::Wait => Err(RefusalReason::InFlight),
        })
    }

    /// Asks the store once, and runs the handler if it may start.
    ///
    /// `begin` must not be cut in half, or a claim could be left without an owner. It is polled once in place, which is all that
    /// a store in memory needs. If it is pending, a task takes it over together with the handler.
    #[expect(clippy::manual_async_fn, reason = "an async function holds its arguments twice")]
    fn try_once<H, F, T>(
        self: &Arc<Self>,
        attempt: &Attempt,
        handler: H,
        time_left: Option<Duration>,
    ) -> impl Future<Output = TryOutcome<H, T>> + Send
    where
        H: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Executed<T>> + Send + 'static,
        T: Send + 'static,
    {
        async move {
            let info = ExecutionInfo::start(attempt, self.clock.now());
            let (mut begin, asked_at) = (self.begin(attempt, info.clone()), Instant::now());
            let next = match poll_once(&mut begin).await {
                None => Next::Pending(Pending::Asked(begin, asked_at)),
                Some(begun) => self.next(attempt, &info, self.decide(attempt, begun), asked_at),
            };
            let task = match next {
                Next::Blocked(blocked) => return TryOutcome::Blocked(blocked, handler),
                next if tokio::runtime::Handle::try_current().is_err() => {
                    if let Next::Start(Start::Protected(execution)) = next {
                        execution.end_in_background(Outcome::Release);
                    }
                    let error = StoreError::unavailable("the handler needs a task, and there is no Tokio runtime");
                    return TryOutcome::Blocked(Blocked::Refuse(RefusalReason::StoreUnavailable(error)), handler);
                }
                Next::Start(start) => {
                    let execution = self.execute(start, handler);
                    self.spawn(async move { TryOutcome::Ran(execution.await) })
                }
                Next::Pending(pending) => {
                    let core = Arc::clone(self);
                    let starting = Arc::clone(self).start(*attempt, info, pending, time_left);
                    self.spawn(async move {
                        match starting.await {
                            Ok(start) => TryOutcome::Ran(core.execute(start, handler).await),
                            Err(blocked) => TryOutcome::Blocked(blocked, handler),
                        }
                    })
                }
            };
            task.await.unwrap_or(TryOutcome::Ran(None))
        }
    }

    /// Runs the handler to its end. Boxed here, since an async function would hold its arguments a second time.
    fn execute<H, F, T>(self: &Arc<Self>, start: Start, handler: H) -> BoxFuture<Option<T>>
    where
        H: FnOnce(Lease) -> F + Send + 'static,
        F: Future<Output = Executed<T>> + Send + 'static,
        T: Send + 'static,
    {
        match start {
            Start::Protected(execution) => Box::pin(execution.run(handler)),
            Start::Unprotected(permit) => Box::pin(unprotected(Arc::clone(self), permit, handler)),
        }
    }
}

//! Asking the store for a key, and everything up to an execution that may start.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::complete::ClaimCompletion;
use super::decide::{Blocked, Decision, decide, mismatch};
use super::dyn_store::{BoxClaim, BoxFuture, StoreFuture};
use super::execute::ClaimedExecution;
use super::operator::KeyReport;
use super::{Core, for_at_most, poll_now, poll_once};
use crate::attempt::Attempt;
use crate::endpoint::PolicyTag;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::outcome::RefusalReason;
use crate::store::{Begin, BeginOptions};
use crate::telemetry::claim::ClaimStep;
use crate::telemetry::counters::{self, GaugeGuard};

/// How long a store may take for one step. A step that takes longer counts as failed.
pub(super) const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an expired record is forgotten before the store counts as broken.
const MAX_FORGETS: usize = 3;

/// What the store reported.
pub(super) type Begun = Result<Begin<BoxClaim>, StoreError>;
/// A `begin` that may still be pending.
pub(super) type BeginFuture = StoreFuture<'static, Begin<BoxClaim>>;

/// The right to be one of the executions that run at once.
pub(super) struct Permit {
    _permit: OwnedSemaphorePermit,
    /// `None` in shadow mode.
    _gauge: Option<GaugeGuard>,
}

/// An attempt before its handler starts.
pub(super) enum Pending {
    /// The store was asked at this time, and has not replied yet.
    Asked(BeginFuture, Instant),
    /// An abandoned claim is to be taken over.
    TakeOver(BoxClaim),
}

/// What follows from a decision.
pub(super) enum Next {
    Start(Start),
    Blocked(Blocked),
    /// The store must be waited for first.
    Pending(Pending),
}

/// A handler that may start.
pub(super) enum Start {
    Protected(ClaimedExecution),
    /// Without a claim, since the store is unavailable.
    Unprotected(Permit),
}

impl Core {
    /// Asks the store for the key of `attempt`.
    pub(super) fn begin(self: &Arc<Self>, attempt: &Attempt, info: ExecutionInfo) -> BeginFuture {
        self.begin_with(attempt, BeginOptions::new(self.lease, attempt.rules.ttl).with_info(info))
    }

    pub(super) fn begin_with(self: &Arc<Self>, attempt: &Attempt, options: BeginOptions) -> BeginFuture {
        let (key, fingerprint) = (attempt.key, attempt.fingerprint);
        if self.capabilities.judges_expiry {
            return Arc::clone(&self.store).begin(key, fingerprint, options);
        }
        let core = Arc::clone(self);
        StoreFuture::new(async move { core.begin_unexpired(key, fingerprint, options).await })
    }

    /// Treats an expired record as absent, for stores that do not judge expiry.
    ///
    /// Asking, forgetting and asking again are three steps, so they happen under a lock. Otherwise a second request, late with
    /// its `forget`, could remove the record that the first one has made meanwhile.
    async fn begin_unexpired(
        self: Arc<Self>,
        key: StorageKey,
        fingerprint: Fingerprint,
        options: BeginOptions,
    ) -> Begun {
        let mut lock = Arc::clone(self.expiry_lock(&key)).lock_owned().await;
        for _ in 0..MAX_FORGETS {
            let begun = Arc::clone(&self.store).begin(key, fingerprint, options.clone()).await?;
            let Begin::Completed(record) = &begun else { return Ok(begun) };
            match record.read() {
                Ok(read) if read.expires_at <= self.clock.now() => {
                    let mut forgetting = Arc::clone(&self.store).forget(key);
                    if let Some(forgotten) = poll_once(&mut forgetting).await {
                        forgotten?;
                        continue;
                    }
                    // In a task that has the lock until the store has replied, even if this future is dropped: until then the
                    // store may forget what it finds.
                    let forgetting = Self::spawn_untracked(async move { forgetting.await.map(|_| lock) });
                    let forgotten = forgetting.await;
                    lock =
                        forgotten.unwrap_or_else(|_| Err(StoreError::unavailable("the async runtime shuts down")))?;
                }
                // Not expired, or not readable, which `decide` refuses.
                _ => return Ok(begun),
            }
        }
        Err(StoreError::unavailable("the store keeps an expired record that it was told to forget"))
    }

    /// Waits at most [`STORE_TIMEOUT`] for the reply to a `begin` that was sent at `asked_at`. A claim that is granted later, or after its
    /// lease has expired, is released: its client is told that nothing was done.
    pub(super) async fn begun_in_time(
        self: &Arc<Self>,
        attempt: &Attempt,
        begin: BeginFuture,
        asked_at: Instant,
    ) -> Begun {
        let begun = self.begun_within(STORE_TIMEOUT, attempt, begin, asked_at).await;
        begun.unwrap_or_else(|| Err(store_timeout(STORE_TIMEOUT)))
    }

    /// Waits as [`begun_in_time`](Self::begun_in_time) does, but at most `time`. Returns `None` if that was too short.
    async fn begun_within(
        self: &Arc<Self>,
        time: Duration,
        attempt: &Attempt,
        mut begin: BeginFuture,
        asked_at: Instant,
    ) -> Option<Begun> {
        match for_at_most(time, &mut begin).await {
            Some(Ok(Begin::Claimed(late))) if self.has_expired(asked_at) => {
                self.release(attempt, late);
                return Some(Err(store_timeout(self.lease)));
            }
            None => {}
            begun => return begun,
        }
        let (core, attempt, lease) = (Arc::clone(self), *attempt, self.lease);
        drop(self.spawn(async move {
            // After a lease the claim has expired by itself. An abandoned claim is not released: its handler may have run.
            if let Ok(Ok(Begin::Claimed(late))) = timeout(lease, begin).await {
                core.release(&attempt, late);
            }
        }));
        None
    }

    /// Returns whether a lease that was asked for at `asked_at` may have expired. Others may have found its claim abandoned since.
    pub(super) fn has_expired(&self, asked_at: Instant) -> bool {
        !self.capabilities.claims_live_with_owner && asked_at.elapsed() >= self.lease
    }

    /// Decides what `attempt` gets, after the store reported `begun`, and reports granted and abandoned claims to operators.
    pub(super) fn decide<C>(&self, attempt: &Attempt, begun: Result<Begin<C>, StoreError>) -> Decision<C> {
        match begun {
            Ok(Begin::Claimed(_)) => ClaimStep::Granted.report(&attempt.key),
            Ok(Begin::Abandoned(_)) => counters::abandoned(),
            _ => {}
        }
        decide(attempt, begun)
    }

    /// The key of `attempt` is claimed with another fingerprint. Returns whether that is a mismatch or a changed policy. One look at the
    /// store tells which; if it fails, nothing is known of a change.
    pub(super) async fn mismatch(self: Arc<Self>, attempt: Attempt) -> RefusalReason {
        if attempt.policy == PolicyTag::NONE {
            return RefusalReason::Mismatch;
        }
        let entry = within(STORE_TIMEOUT, Arc::clone(&self.store).inspect(attempt.key)).await;
        let report = entry.ok().flatten().and_then(|entry| self.report(entry).ok().flatten());
        // The key may belong to another request by now.
        let report = report.filter(|report| *report.fingerprint() != attempt.fingerprint);
        mismatch(&attempt, report.as_ref().and_then(KeyReport::execution_info))
    }

    /// Turns a decision into the next step, without waiting. The store was asked at `asked_at`.
    pub(super) fn next(
        self: &Arc<Self>,
        attempt: &Attempt,
        info: &ExecutionInfo,
        decision: Decision,
        asked_at: Instant,
    ) -> Next {
        match decision {
            Decision::Run(claim) => match self.permit() {
                // Only new keys are refused because too many executions run, so this comes after the store was asked.
                Some(permit) => {
                    Next::Start(Start::Protected(ClaimedExecution::new(self, attempt, info, claim, permit, asked_at)))
                }
                None => {
                    self.release(attempt, claim);
                    Next::Blocked(Blocked::Refuse(RefusalReason::TooManyExecutions))
                }
            },
            Decision::RunWithoutStore(error) => match self.permit() {
                Some(permit) => {
                    let cause = error.cause();
                    tracing::error!(key = %attempt.key, %error, cause, "the store is unavailable; the handler runs without protection, as its policy allows");
                    Next::Start(Start::Unprotected(permit))
                }
                None => Next::Blocked(Blocked::Refuse(RefusalReason::TooManyExecutions)),
            },
            Decision::TakeOver(claim) => Next::Pending(Pending::TakeOver(claim)),
            Decision::Blocked(blocked) => Next::Blocked(blocked),
        }
    }

    /// Takes every step that is left until the handler may start, or is blocked. `time_left` is set if the request already waits for
    /// another execution: when it is up, the request is refused as in flight. So is one that is too late to take a claim over, if asking
    /// again within its time does not help.
    pub(super) fn start(
        self: Arc<Self>,
        attempt: Attempt,
        info: ExecutionInfo,
        mut pending: Pending,
        time_left: Option<Duration>,
    ) -> BoxFuture<Result<Start, Blocked>> {
        Box::pin(async move {
            let mut told_in_flight = time_left.is_some();
            let until = Instant::now() + time_left.unwrap_or(STORE_TIMEOUT);
            loop {
                pending = match pending {
                    Pending::Asked(begin, asked_at) => {
                        let time = until.saturating_duration_since(Instant::now()).min(STORE_TIMEOUT);
                        let begun = match self.begun_within(time, &attempt, begin, asked_at).await {
                            Some(begun) => begun,
                            None if told_in_flight => return Err(Blocked::Refuse(RefusalReason::InFlight)),
                            None => Err(store_timeout(STORE_TIMEOUT)),
                        };
                        match self.next(&attempt, &info, self.decide(&attempt, begun), asked_at) {
                            Next::Start(start) => return Ok(start),
                            Next::Blocked(blocked) => return Err(blocked),
                            Next::Pending(pending) => pending,
                        }
                    }
                    Pending::TakeOver(mut claim) => {
                        // Without a permit the claim stays abandoned: its handler may have run.
                        let Some(permit) = self.permit() else {
                            return Err(Blocked::Refuse(RefusalReason::TooManyExecutions));
                        };
                        match self.take_over(&attempt.key, &mut claim).await {
                            Ok(asked_at) => {
                                let execution = ClaimedExecution::new(&self, &attempt, &info, claim, permit, asked_at);
                                return Ok(Start::Protected(execution));
                            }
                            // Another request was first, so the store is asked again.
                            Err(StoreError::Lost) => {
                                told_in_flight = true;
                                Pending::Asked(self.begin(&attempt, info.clone()), Instant::now())
                            }
                            Err(error) => return Err(Blocked::Refuse(RefusalReason::StoreUnavailable(error))),
                        }
                    }
                };
            }
        })
    }

    /// Takes over an abandoned claim. Returns when the store was asked: the lease counts from then on.
    pub(super) async fn take_over(&self, key: &StorageKey, claim: &mut BoxClaim) -> Result<Instant, StoreError> {
        let asked_at = Instant::now();
        within(STORE_TIMEOUT, claim.renew(self.lease)).await?;
        if self.has_expired(asked_at) {
            return Err(store_timeout(self.lease));
        }
        ClaimStep::TakenOver.report(key);
        Ok(asked_at)
    }

    /// Releases a claim under which nothing has happened. Nothing waits for it.
    pub(super) fn release(self: &Arc<Self>, attempt: &Attempt, claim: BoxClaim) {
        let mut release = Box::pin(ClaimCompletion::release(attempt, claim, self.lease).finish(Arc::clone(self)));
        // Failures are logged.
        if poll_now(&mut release).is_none() {
            drop(self.spawn(release));
        }
    }

    pub(super) fn permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(Permit { _permit: permit, _gauge: Some(GaugeGuard::in_flight()) })
    }

    /// A permit that is counted apart, for executions in shadow mode.
    pub(super) fn shadow_permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.shadow_permits).try_acquire_owned().ok()?;
        Some(Permit { _permit: permit, _gauge: None })
    }
}

/// Awaits a step of a store for at most `time`.
pub(super) async fn within<T>(
    time: Duration,
    step: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    for_at_most(time, step).await.unwrap_or_else(|| Err(store_timeout(time)))
}

/// The error of a store that did not reply in time.
pub(super) fn store_timeout(time: Duration) -> StoreError {
    StoreError::unavailable(format!("no reply from the store within {time:?}"))
}

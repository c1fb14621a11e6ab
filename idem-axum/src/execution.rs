//! One execution: the handler runs, and its response is split into what the caller gets and what is recorded.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode};
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{
    Attempt, Executed, Fingerprint, Outcome, RefusalReason, RequestSpan, RunResult, StorageKey, panics,
};
use tokio::time::{Instant, timeout};

use crate::context::{self, LayerConfig};
use crate::policy::{Policy, Refusal};
use crate::request::UnreadBody;
use crate::response::{self, Framing, RecordedRequest, Unrecorded};
use crate::telemetry::{self, ExecutionSpan, Keyless};

/// What an execution needs to know of its request. It has no handle of the engine by itself: a task that outlives the last one would
/// hide that the engine was dropped while it ran.
pub(crate) struct Execution {
    request: RecordedRequest<'static>,
    link: Option<HeaderValue>,
    span: ExecutionSpan,
    /// The handler's transaction, if it has one.
    slot: Option<TransactionSlot>,
    /// The body of the request, as far as the handler does not read it.
    unread: UnreadBody,
}

impl Execution {
    pub(crate) fn new(
        request: RecordedRequest<'static>,
        config: &LayerConfig,
        span: ExecutionSpan,
        slot: Option<TransactionSlot>,
        unread: UnreadBody,
    ) -> Self {
        if let Some(slot) = &slot {
            slot.set_timeout(timeout_of(request.policy));
        }
        Self { request, link: config.link.clone(), span, slot, unread }
    }

    /// Runs the handler. A panic, even one while the response is made, and a timeout become refusals that are recorded under the
    /// same rules as any response, since the handler may have had effects.
    pub(crate) async fn run(self, handler: BoxFuture<'static, Response>) -> Executed<Response> {
        tracing::debug!("an execution starts");
        self.unread.release();
        let limit = timeout_of(self.request.policy).map(Limit::new);
        let refusal = match self.respond(handler, limit).await {
            Ok(response) => {
                let recorded = match &self.slot {
                    None => {
                        let recorded = response::record(&self.request, response, response::MAX_READY).await;
                        recorded.map_err(|panic| self.panicked(panic))
                    }
                    Some(slot) => self.record_in_time(slot, response, limit).await,
                };
                match recorded {
                    Ok(executed) => return executed,
                    Err(refusal) => refusal,
                }
            }
            Err(refusal) => refusal,
        };
        let refused = context::describe(self.link.as_ref(), telemetry::refuse(&self.span.get(), refusal));
        if self.slot.is_some() {
            // What the handler wrote is rolled back, so nothing has happened.
            return response::done(refused, Outcome::Release);
        }
        // Boxed, since it is large, and few handlers panic.
        Box::pin(response::record_refusal(&self.request, refused)).await
    }

    async fn respond(&self, handler: BoxFuture<'static, Response>, limit: Option<Limit>) -> Result<Response, Refusal> {
        let policy = self.request.policy;
        let mut handler = AssertUnwindSafe(handler).catch_unwind();
        let ended = match limit {
            None => handler.await,
            // Boxed, since the timer is larger than everything else, and most policies need none.
            Some(limit) => match Box::pin(timeout(limit.longest, &mut handler)).await {
                // The database ends a statement after the same time, and a handler may see that before the timer ends here.
                Ok(ended) if self.slot.is_none() || !limit.left().is_zero() => ended,
                late => {
                    self.unread.keep();
                    panics::drop_quietly(late);
                    panics::drop_quietly(handler);
                    return Err(Refusal::HandlerTimedOut { policy, undone: self.slot.is_some() });
                }
            },
        };
        ended.map_err(|panic| self.panicked(panic))
    }

    /// The response is read before the commit, so it has the same time as the handler: one that stalls keeps a transaction open.
    async fn record_in_time(
        &self,
        slot: &TransactionSlot,
        response: Response,
        limit: Option<Limit>,
    ) -> Result<Executed<Response>, Refusal> {
        let mut recorded = Box::pin(record_in_transaction(&self.request, slot, response));
        let ended = match limit {
            None => recorded.await,
            Some(limit) => match Box::pin(timeout(limit.left(), &mut recorded)).await {
                Ok(ended) => ended,
                Err(_) => {
                    panics::drop_quietly(recorded);
                    return Err(Refusal::HandlerTimedOut { policy: self.request.policy, undone: true });
                }
            },
        };
        ended.map_err(|panic| self.panicked(panic))
    }

    fn panicked(&self, panic: Box<dyn Any + Send>) -> Refusal {
        panics::discard(panic);
        Refusal::HandlerPanicked { policy: self.request.policy, undone: self.slot.is_some() }
    }
}

/// How long an execution may take, and when it started.
#[derive(Clone, Copy)]
struct Limit {
    longest: Duration,
    started: Instant,
}

impl Limit {
    fn new(longest: Duration) -> Self {
        Self { longest, started: Instant::now() }
    }

    fn left(self) -> Duration {
        self.longest.saturating_sub(self.started.elapsed())
    }
}

/// Returns how long a handler may run. In shadow mode nothing is enforced.
pub(crate) fn timeout_of(policy: &Policy) -> Option<Duration> {
    policy.timeout.filter(|_| !policy.shadow)
}

/// As [`response::record`], and says whether what the handler wrote is kept. The response is awaited first, up to what is recorded,
/// since the caller gets it after the commit.
async fn record_in_transaction(
    request: &RecordedRequest<'static>,
    slot: &TransactionSlot,
    response: Response,
) -> Result<Executed<Response>, Box<dyn Any + Send>> {
    let (policy, status) = (request.policy, response.status());
    let is_unrecorded = response.extensions().get::<Unrecorded>().is_some();
    let is_unset = policy.record.is_none() && status.is_server_error();
    // After these a retry is meant to run the handler again, so what it wrote is undone. Without a claim there are no retries.
    let reruns = is_unset || request.body_failed || response.extensions().get::<Refusal>().is_some();
    if is_unrecorded || (reruns && !slot.is_unkeyed()) {
        if request.body_failed && status.as_u16() < 400 {
            slot.set_fault(
                "it returned a success although the body of its request had broken off, and what it wrote was rolled back; return \
                 an error",
            );
        }
        return Ok(response::done(response, Outcome::Release));
    }
    let (response, has_failed) = response::buffer(request, response).await?;
    // Without a key nothing is recorded. After a body that failed the caller sees no success either.
    let executed = if slot.is_unkeyed() || has_failed {
        response::done(response, Outcome::Release)
    } else {
        response::record(request, response, usize::MAX).await?
    };
    if !has_failed && status.as_u16() < 400 {
        slot.keep_writes();
    }
    Ok(executed)
}

/// Runs a handler in a transaction that has no claim. It is committed if the status is below 400.
pub(crate) fn run_without_key(
    policy: &'static Policy,
    config: Arc<LayerConfig>,
    slot: TransactionSlot,
    framing: Framing,
    keyless: Option<Arc<Keyless>>,
    (handler, unread): (BoxFuture<'static, Response>, UnreadBody),
) -> BoxFuture<'static, Response> {
    // No two requests may have one storage key. Those of keys are hashes.
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&REQUESTS.fetch_add(1, Ordering::Relaxed).to_ne_bytes());
    slot.set_unkeyed();
    Box::pin(async move {
        let span =
            keyless.clone().map_or_else(|| ExecutionSpan::Request(RequestSpan::default()), ExecutionSpan::Keyless);
        let request = RecordedRequest {
            policy,
            framing,
            has_transaction: true,
            body_failed: false,
            warnings: config.warnings.clone(),
        };
        let execution = Execution::new(request, &config, span.clone(), Some(slot.clone()), unread.clone());
        let attempt = Attempt::new(StorageKey::from_bytes(key), Fingerprint::from_bytes([0; 32]), policy.rules());
        let execute = move || {
            if let Some(keyless) = &keyless {
                keyless.starts();
            }
            execution.run(handler)
        };
        let run = config.idempotency.run_in_transaction(attempt, slot.clone(), execute);
        let response = match run.await {
            Ok(RunResult::Executed(response)) => response,
            // There are no records without keys.
            Ok(RunResult::Replayed(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Err(reason) => refused(policy, &config, || span.get(), Some(&slot), reason),
        };
        unread.discard_if_refused(response).await
    })
}

/// Returns the response of a request that was refused, or whose transaction was not committed.
pub(crate) fn refused(
    policy: &'static Policy,
    config: &LayerConfig,
    span: impl FnOnce() -> RequestSpan,
    slot: Option<&TransactionSlot>,
    reason: RefusalReason,
) -> Response {
    match slot.and_then(TransactionSlot::fault) {
        None => config.refuse(&span(), Refusal::new(reason, policy)),
        Some(fault) => {
            let span = span();
            span.rejected();
            span.in_scope(|| {
                tracing::error!(
                    fault,
                    "a handler with an argument `Tx` failed: its response was not sent and not recorded"
                );
            });
            // Shadow mode records it no more than the engine did.
            (Unrecorded, StatusCode::INTERNAL_SERVER_ERROR).into_response()
        }
    }
}

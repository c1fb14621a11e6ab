//! The span of a request, and the timers of its store steps and its handler.
//!
//! If the client hangs up the execution goes on, and so does the span: the request and its execution share it, and the last
//! one to finish writes the results to it.

use std::cell::LazyCell;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::either::Either;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, record_all};

use super::counters::{self, Operation};
use crate::endpoint::Endpoint;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::hash::hex;
use crate::key::StorageKey;
use crate::outcome::Replay;

tokio::task_local! {
    /// The span of the request that the current task works for.
    static CURRENT: Arc<SpanInner>;
}

/// The span of one request, from its arrival to its response and to the end of its execution.
///
/// An adapter opens one for each request with a key, works within it, and reports what it sent. It has the `tracing` span
/// `idempotency` at level `INFO`, with these fields:
///
/// | field | value |
/// |---|---|
/// | `endpoint` | the [`Endpoint`] |
/// | `key` | the first eight hex digits of the storage key |
/// | `execution` | the id of the execution |
/// | `replay_of` | the id of the execution that left the replayed record |
/// | `replay_of_trace` | the id of the trace of that execution, if it had one |
/// | `outcome` | see [below](Self#outcomes) |
/// | `code` | the code of the refusal, if there was one |
/// | `would` | in shadow mode: what would have happened |
/// | `store_us` | microseconds of all store steps, without renewals |
/// | `handler_us` | microseconds from the start of the handler to its response; a stream that follows is not counted |
///
/// The last five are written when the request and its execution have ended. If no subscriber wants the span and the feature
/// `metrics` is off, nothing is measured.
///
/// Within it, each step of a claim that the store confirmed is an event at level `DEBUG` with the field `claim`: `granted`,
/// `taken_over`, `completed` or `released`.
///
/// # Outcomes
/// `executed`: the handler ran for this request. `replayed`: it got a replay. `refused`: it got a refusal. `rejected`: an
/// extractor sent the response. `unprotected`: the handler ran without a claim, since the store was unavailable and the policy
/// allows it, or since the handler's arguments say no key. `left`: the client was gone before any of these. `shadow`: nothing was enforced.
///
/// ```
/// # async fn example(idempotency: idem_runtime::Idempotency, attempt: idem_runtime::Attempt) {
/// use idem_runtime::{Endpoint, Executed, Outcome, RecordBuilder, Recording, RequestSpan, RunResult};
///
/// let span = RequestSpan::new(|| Endpoint::new("POST", "/orders"));
/// let work = async {
///     span.set_key(&attempt.key);
///     let handler =
///         async { Executed { response: "done", recording: Recording::Done(Outcome::Record(RecordBuilder::new())) } };
///     match idempotency.run(attempt, |_| handler).await {
///         Ok(RunResult::Executed(_)) => {}
///         Ok(RunResult::Replayed(replay)) => span.replayed(&replay),
///         Err(_) => span.refused("some_code"),
///     }
/// };
/// span.instrument(work).await;
/// # }
/// ```
#[derive(Clone, Default)]
pub struct RequestSpan(Option<Arc<SpanInner>>);

struct SpanInner {
    span: Span,
    endpoint: Arc<str>,
    outcome: OnceLock<&'static str>,
    code: OnceLock<&'static str>,
    would: OnceLock<&'static str>,
    store: TimeSum,
    handler: TimeSum,
}

/// A sum of times, in nanoseconds.
#[derive(Default)]
struct TimeSum(AtomicU64);

impl TimeSum {
    fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns `None` if nothing was measured.
    fn microseconds(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&nanos| nanos > 0).map(|nanos| nanos / 1000)
    }
}

impl Drop for SpanInner {
    fn drop(&mut self) {
        record_all!(
            self.span,
            outcome = self.outcome.get().unwrap_or(&"left"),
            code = self.code.get(),
            would = self.would.get(),
            store_us = self.store.microseconds(),
            handler_us = self.handler.microseconds(),
        );
    }
}

impl RequestSpan {
    /// Opens the span of a request to `endpoint`, as a child of the current one. It is empty if nothing wants it.
    pub fn new(endpoint: impl FnOnce() -> Endpoint) -> Self {
        Self::open(counters::ON, endpoint)
    }

    /// As [`new`](Self::new). It is also wanted if anything `is_counted`.
    fn open(is_counted: bool, endpoint: impl FnOnce() -> Endpoint) -> Self {
        let endpoint = LazyCell::new(|| name_of(&endpoint()));
        // The endpoint is written only if the span is wanted. Filters decide by the name and the fields of this very span.
        let span = tracing::info_span!(
            "idempotency",
            endpoint = %*endpoint,
            key = Empty,
            execution = Empty,
            replay_of = Empty,
            replay_of_trace = Empty,
            outcome = Empty,
            code = Empty,
            would = Empty,
            store_us = Empty,
            handler_us = Empty,
        );
        if span.is_disabled() && !is_counted {
            return Self(None);
        }
        let inner = SpanInner {
            span,
            endpoint: Arc::clone(&endpoint),
            outcome: OnceLock::new(),
            code: OnceLock::new(),
            would: OnceLock::new(),
            store: TimeSum::default(),
            handler: TimeSum::default(),
        };
        Self(Some(Arc::new(inner)))
    }

    /// Counts a request to `endpoint` that has no key and needs none. It has no span.
    pub fn count_unprotected(endpoint: impl FnOnce() -> Endpoint) {
        if counters::ON {
            counters::unprotected(&name_of(&endpoint()), "key_missing");
        }
    }

    /// The request turned out to have no key and to need none. It is counted as by
    /// [`count_unprotected`](Self::count_unprotected).
    pub fn without_key(&self, endpoint: impl FnOnce() -> Endpoint) {
        Self::count_unprotected(endpoint);
        self.set_outcome("unprotected");
    }

    /// Returns whether anything is measured.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Runs `work` within this span. An execution that starts there is within it, too.
    ///
    /// Cancel safe if `work` is: dropping the future drops `work`.
    pub async fn instrument<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            // Boxed, since it would be moved several times otherwise.
            Some(inner) => CURRENT.scope(Arc::clone(inner), Box::pin(work.instrument(inner.span.clone()))).await,
            None => work.await,
        }
    }

    /// As [`instrument`](Self::instrument), for work that does not wait.
    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(inner) => inner.span.in_scope(work),
            None => work(),
        }
    }

    /// Writes the storage key to the span.
    pub fn set_key(&self, key: &StorageKey) {
        if let Some(inner) = &self.0 {
            inner.span.record("key", display(key));
        }
    }

    /// The request gets a replay. The span names the execution that left the record and its trace. It is no link by span id,
    /// since the ids of closed spans are used again.
    pub fn replayed(&self, replay: &Replay) {
        if let Some(inner) = &self.0 {
            counters::replayed(&inner.endpoint);
            if let Some(info) = replay.execution_info() {
                inner.span.record("replay_of", display(info.id()));
                if let Some(trace) = info.trace() {
                    inner.span.record("replay_of_trace", &*hex::<16>(&trace.trace_id));
                }
            }
        }
        self.set_outcome("replayed");
    }

    /// The request is refused with this code. If the handler has started before, the outcome stays `executed`.
    pub fn refused(&self, code: &'static str) {
        self.set_outcome("refused");
        if let Some(inner) = &self.0 {
            let _ = inner.code.set(code);
            counters::refused(&inner.endpoint, code);
        }
    }

    /// The handler runs in any case, since the endpoint is in shadow mode. `would` names what would have happened: `execute`,
    /// `replay`, or the code of a refusal, say.
    pub fn would(&self, would: &'static str) {
        self.set_outcome("shadow");
        if let Some(inner) = &self.0 {
            let _ = inner.would.set(would);
            counters::shadow(&inner.endpoint, would);
        }
    }

    /// An extractor has sent the response.
    pub fn rejected(&self) {
        self.set_outcome("rejected");
    }

    /// The first outcome counts.
    fn set_outcome(&self, outcome: &'static str) {
        if let Some(inner) = &self.0 {
            let _ = inner.outcome.set(outcome);
        }
    }

    /// Returns the span of the request that the current task works for.
    pub(crate) fn current() -> Self {
        Self(CURRENT.try_with(Arc::clone).ok())
    }

    /// Makes this the current span of `task`, which goes on with the request's work.
    pub(crate) fn carry<F: Future>(self, task: F) -> impl Future<Output = F::Output> {
        match self.0 {
            Some(inner) => Either::Left(CURRENT.scope(inner, task)),
            None => Either::Right(task),
        }
    }
}

/// Returns the name of an endpoint in spans and metrics.
fn name_of(endpoint: &Endpoint) -> Arc<str> {
    if *endpoint == Endpoint::UNKNOWN { "unknown".into() } else { endpoint.as_str().into() }
}

impl fmt::Debug for RequestSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSpan").field("on", &self.is_on()).finish_non_exhaustive()
    }
}

/// Measures one step of a store, until it is dropped.
pub(crate) struct StoreTimer {
    store: &'static str,
    operation: Operation,
    span: Option<Arc<SpanInner>>,
    /// `None` if nothing is measured.
    started: Option<Instant>,
    /// How long the engine waits for the step.
    limit: Duration,
    is_finished: bool,
}

impl StoreTimer {
    /// Starts a step of a store of the type `S`, which the engine drops after `limit`.
    pub(crate) fn start<S>(operation: Operation, limit: Duration) -> Self {
        let span = RequestSpan::current().0;
        let started = (counters::ON || span.is_some()).then(Instant::now);
        let store = if counters::ON { counters::name_of::<S>() } else { "" };
        Self { store, operation, span, started, limit, is_finished: false }
    }

    /// Ends the step, and counts it if it failed.
    pub(crate) fn finish<T>(mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.is_finished = true;
        if matches!(result, Err(StoreError::Unavailable(_) | StoreError::Unreadable(_))) {
            counters::step_failed(self.store, self.operation);
        }
        result
    }
}

impl Drop for StoreTimer {
    fn drop(&mut self) {
        let Some(time) = self.started.map(|started| started.elapsed()) else { return };
        counters::step(self.store, self.operation, time);
        // Any other step that is dropped is not needed any more: the renewal of a claim whose handler has ended, say.
        if !self.is_finished && (time >= self.limit || thread::panicking()) {
            counters::step_failed(self.store, self.operation);
        }
        // Renewals happen while the handler runs, and the request does not wait for them.
        if let Some(span) = self.span.as_ref().filter(|_| self.operation != Operation::Renew) {
            span.store.add(time);
        }
    }
}

/// Measures a handler, until it is dropped.
pub(crate) struct HandlerTimer {
    span: Option<Arc<SpanInner>>,
    /// `None` if nothing is measured.
    started: Option<Instant>,
}

impl HandlerTimer {
    /// A handler starts under a claim.
    pub(crate) fn protected(info: &ExecutionInfo) -> Self {
        let timer = Self::start("executed");
        if let Some(inner) = &timer.span {
            inner.span.record("execution", display(info.id()));
        }
        timer.count(counters::executed);
        timer
    }

    /// A handler starts without a claim, since the store is unavailable.
    pub(crate) fn unprotected() -> Self {
        let timer = Self::start("unprotected");
        timer.count(|endpoint| counters::unprotected(endpoint, "store_unavailable"));
        timer
    }

    fn start(outcome: &'static str) -> Self {
        let current = RequestSpan::current();
        current.set_outcome(outcome);
        let span = current.0;
        let started = (counters::ON || span.is_some()).then(Instant::now);
        Self { span, started }
    }

    fn count(&self, count: impl FnOnce(&Arc<str>)) {
        match &self.span {
            Some(span) => count(&span.endpoint),
            None if counters::ON => count(&name_of(&Endpoint::UNKNOWN)),
            None => {}
        }
    }
}

impl Drop for HandlerTimer {
    fn drop(&mut self) {
        let Some(time) = self.started.map(|started| started.elapsed()) else { return };
        self.count(|endpoint| counters::handler(endpoint, time));
        if let Some(span) = &self.span {
            span.handler.add(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::test_support::subscriber::set_default;

    struct Filter(fn(&Metadata<'_>) -> bool);

    impl Subscriber for Filter {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            (self.0)(metadata)
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_filter_by_the_name_or_a_field_of_the_span_gets_it_although_nothing_is_counted() {
        // As `RUST_LOG=[idempotency]` and `RUST_LOG=[{endpoint}]`.
        let filters: [fn(&Metadata<'_>) -> bool; 2] =
            [|metadata| metadata.name() == "idempotency", |metadata| metadata.fields().field("endpoint").is_some()];
        for filter in filters {
            let _filters = set_default(Filter(filter));
            let span = RequestSpan::open(false, || Endpoint::new("POST", "/orders"));
            assert_eq!(span.0.map(|inner| inner.endpoint.to_string()).as_deref(), Some("POST /orders"));
        }
        let _filters = set_default(Filter(|_| false));
        for (is_counted, is_on) in [(false, false), (true, true)] {
            let mut is_asked = false;
            let span = RequestSpan::open(is_counted, || {
                is_asked = true;
                Endpoint::UNKNOWN
            });
            assert_eq!((span.is_on(), is_asked), (is_on, is_on));
        }
    }
}

//! What can be seen of one request: its span, and how long the store and the body took.
//!
//! A request whose client hung up is still observed, since its execution goes on: whoever comes last, the request or
//! its execution, closes the observation, and what it found is written to the span then, once.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

use crate::counted::{self, Operation};
use crate::engine::Replay;
use crate::erased::BoxFuture;
use crate::hash::hex;
use crate::key::StorageKey;
use crate::origin::{Endpoint, Origin};
use crate::store::StoreError;

tokio::task_local! {
    /// That of the request on whose behalf a task works.
    static CURRENT: Arc<Seen>;
}

/// What is observed of one request from its arrival to its answer, and to the end of its execution.
///
/// An adapter opens one for each request with a key, works within it, and says what it answered. It has the `tracing` span
/// `idempotency` at level `INFO`, with these fields:
///
/// | field | value |
/// |---|---|
/// | `endpoint` | the [`Endpoint`] |
/// | `key` | the first eight hex digits of the storage key |
/// | `execution` | the id of the execution |
/// | `replay_of` | the id of the execution that left the record which answers |
/// | `replay_of_trace` | the id of the trace that that execution belonged to, if any |
/// | `outcome` | see [below](Self#outcomes) |
/// | `code` | the name of the refusal, where there was one |
/// | `would` | in shadow mode: what would have happened |
/// | `store_us` | microseconds in which the store was asked, all steps but renewals together |
/// | `body_us` | microseconds from the start of the body to its answer; a stream that follows is not counted |
///
/// The last five are written when everything is over. Where no subscriber wants the span, nothing is observed, and
/// that costs next to nothing.
///
/// # Outcomes
/// `executed`: the body ran for this request. `replayed`: a record was. `refused`: neither. `rejected`: an extractor
/// answered. `unprotected`: the body ran without a claim, since the store could not be asked and the policy says so. `left`:
/// the client was gone before any of these. `shadow`: nothing was enforced.
///
/// ```
/// # async fn example(idempotency: idem_runtime::Idempotency, attempt: idem_runtime::Attempt) {
/// use idem_runtime::{Answer, Draft, Ended, Endpoint, Observation, Outcome, Recording};
///
/// let observation = Observation::new(|| Endpoint::new("POST", "/orders"));
/// let work = async {
///     observation.belongs_to(&attempt.key);
///     let body = async { Ended { response: "done", recording: Recording::Done(Outcome::Answer(Draft::new())) } };
///     match idempotency.run(attempt, || body).await {
///         Ok(Answer::Ran(_)) => {}
///         Ok(Answer::Recorded(replay)) => observation.replayed(&replay),
///         Err(_) => observation.refused("some_code"),
///     }
/// };
/// observation.over(work).await;
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Observation(Option<Arc<Seen>>);

/// What was seen.
struct Seen {
    span: Span,
    endpoint: Arc<str>,
    outcome: OnceLock<&'static str>,
    code: OnceLock<&'static str>,
    would: OnceLock<&'static str>,
    store: Total,
    body: Total,
}

/// An endpoint that nobody named.
const UNKNOWN: &str = "unknown";

/// A sum of times, in microseconds.
#[derive(Default)]
struct Total(AtomicU64);

impl Total {
    fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// `None` where nothing took any time.
    fn microseconds(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
            .filter(|&nanoseconds| nanoseconds > 0)
            .map(|nanoseconds| nanoseconds / 1000)
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.span.record("outcome", self.outcome.get().copied().unwrap_or("left"));
        for (field, total) in [("store_us", &self.store), ("body_us", &self.body)] {
            if let Some(microseconds) = total.microseconds() {
                self.span.record(field, microseconds);
            }
        }
        if let Some(code) = self.code.get() {
            self.span.record("code", code);
        }
        if let Some(would) = self.would.get() {
            self.span.record("would", would);
        }
    }
}

impl Observation {
    /// Begins to observe a request to `endpoint`, if anybody wants to see it. The span is a child of the current one.
    pub fn new(endpoint: impl FnOnce() -> Endpoint) -> Self {
        if !counted::ON && !tracing::span_enabled!(tracing::Level::INFO) {
            return Self(None);
        }
        let endpoint = name_of(&endpoint());
        let span = tracing::info_span!(
            "idempotency",
            %endpoint,
            key = Empty,
            execution = Empty,
            replay_of = Empty,
            replay_of_trace = Empty,
            outcome = Empty,
            code = Empty,
            would = Empty,
            store_us = Empty,
            body_us = Empty,
        );
        let seen = Seen {
            span,
            endpoint,
            outcome: OnceLock::new(),
            code: OnceLock::new(),
            would: OnceLock::new(),
            store: Total::default(),
            body: Total::default(),
        };
        Self(Some(Arc::new(seen)))
    }

    /// Counts a request to `endpoint` that needs no protection, and so is not observed.
    pub fn unprotected(endpoint: impl FnOnce() -> Endpoint) {
        if counted::ON {
            counted::unprotected(&name_of(&endpoint()), "key_missing");
        }
    }

    /// Whether anybody wants to see anything.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Works within this observation and its span. So does an execution that starts there.
    ///
    /// Cancel safe where `work` is: dropping the future drops `work`.
    pub async fn over<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            // In a box, since it would be moved from hand to hand otherwise.
            Some(seen) => CURRENT.scope(Arc::clone(seen), Box::pin(work.instrument(seen.span.clone()))).await,
            None => work.await,
        }
    }

    /// As [`over`](Self::over), for work without a wait.
    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(seen) => seen.span.in_scope(work),
            None => work(),
        }
    }

    /// Whose key it is, and which, is known.
    pub fn belongs_to(&self, key: &StorageKey) {
        if let Some(seen) = &self.0 {
            seen.span.record("key", display(key));
        }
    }

    /// The request is answered from a record. The span says which execution left it, and in which trace that was: a span
    /// that is closed cannot be linked to by its id, since ids are used again.
    pub fn replayed(&self, replay: &Replay) {
        if let Some(seen) = &self.0 {
            counted::replayed(&seen.endpoint);
            if let Some(origin) = replay.origin() {
                seen.span.record("replay_of", display(origin.execution()));
                if let Some(trace) = origin.trace() {
                    seen.span.record("replay_of_trace", &*hex::<16>(&trace.trace_id));
                }
            }
        }
        self.end("replayed");
    }

    /// The request is refused, for the reason with this name. Where the body has started all the same, the outcome stays
    /// what it is.
    pub fn refused(&self, code: &'static str) {
        self.end("refused");
        if let Some(seen) = &self.0 {
            let _ = seen.code.set(code);
            counted::refused(&seen.endpoint, code);
        }
    }

    /// The body runs in any case, since the endpoint is in shadow mode. `would` names what would have happened: `execute`,
    /// `replay`, or the code of a refusal, say.
    pub fn would(&self, would: &'static str) {
        self.end("shadow");
        if let Some(seen) = &self.0 {
            let _ = seen.would.set(would);
            counted::shadow(&seen.endpoint, would);
        }
    }

    /// An extractor has answered the request.
    pub fn rejected(&self) {
        self.end("rejected");
    }

    /// The first one counts.
    fn end(&self, outcome: &'static str) {
        if let Some(seen) = &self.0 {
            let _ = seen.outcome.set(outcome);
        }
    }

    /// That of the request on whose behalf this task works.
    fn current() -> Self {
        Self(CURRENT.try_with(Arc::clone).ok())
    }
}

/// What the endpoint is called where it is seen.
fn name_of(endpoint: &Endpoint) -> Arc<str> {
    if *endpoint == Endpoint::UNKNOWN { UNKNOWN.into() } else { endpoint.as_str().into() }
}

impl fmt::Debug for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation").field("on", &self.is_on()).finish_non_exhaustive()
    }
}

/// Hands the observation of the current task on to a task that goes on with its work.
pub(crate) fn carried<T: Send + 'static>(task: BoxFuture<T>) -> BoxFuture<T> {
    match Observation::current() {
        Observation(Some(seen)) => Box::pin(CURRENT.scope(seen, task)),
        Observation(None) => task,
    }
}

/// One step of a store, from here until it is dropped: with its answer, or because nobody waits for it any longer.
pub(crate) struct Step {
    store: &'static str,
    operation: Operation,
    seen: Option<Arc<Seen>>,
    /// `None` where nobody wants to know.
    began: Option<Instant>,
}

impl Step {
    /// Asks a store of the type `S`.
    pub(crate) fn start<S>(operation: Operation) -> Self {
        let seen = Observation::current().0;
        let began = (counted::ON || seen.is_some()).then(Instant::now);
        let store = if counted::ON { counted::name_of::<S>() } else { "" };
        Self { store, operation, seen, began }
    }

    /// What the store has answered.
    pub(crate) fn answered<T>(self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(answer, Err(StoreError::Unavailable(_) | StoreError::Unreadable(_))) {
            counted::step_failed(self.store, self.operation);
        }
        answer
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let Some(time) = self.began.map(|began| began.elapsed()) else { return };
        counted::step(self.store, self.operation, time);
        // Renewals go on while the body runs, and the request does not wait for them.
        if let Some(seen) = self.seen.as_ref().filter(|_| self.operation != Operation::Renew) {
            seen.store.add(time);
        }
    }
}

/// A body that runs; dropped when it has answered.
pub(crate) struct Running {
    seen: Option<Arc<Seen>>,
    /// `None` where nobody wants to know.
    began: Option<Instant>,
}

impl Running {
    /// It starts now, under a claim.
    pub(crate) fn protected(origin: &Origin) -> Self {
        let running = Self::start("executed");
        if let Some(seen) = &running.seen {
            seen.span.record("execution", display(origin.execution()));
        }
        running.count(counted::executed);
        running
    }

    /// It starts now, without one, since the store could not be asked.
    pub(crate) fn unprotected() -> Self {
        let running = Self::start("unprotected");
        running.count(|endpoint| counted::unprotected(endpoint, "store_unavailable"));
        running
    }

    fn start(outcome: &'static str) -> Self {
        let observation = Observation::current();
        observation.end(outcome);
        let seen = observation.0;
        let began = (counted::ON || seen.is_some()).then(Instant::now);
        Self { seen, began }
    }

    fn count(&self, count: impl FnOnce(&Arc<str>)) {
        match &self.seen {
            Some(seen) => count(&seen.endpoint),
            None if counted::ON => count(&name_of(&Endpoint::UNKNOWN)),
            None => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(time) = self.began.map(|began| began.elapsed()) else { return };
        self.count(|endpoint| counted::body(endpoint, time));
        if let Some(seen) = &self.seen {
            seen.body.add(time);
        }
    }
}

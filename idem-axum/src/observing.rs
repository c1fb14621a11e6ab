//! What an operator can see: a page of documentation, without items.
//!
//! # The span
//!
//! Each request with a key, and each that is refused for its key, has one `tracing` span: `idempotency`, level `INFO`, target
//! `idem_runtime`, a child of the span that your middleware opened. The body runs within it, so what the body logs is
//! found with the key; also when the client has hung up, since the execution goes on and the span stays open until it has
//! ended.
//!
//! | field | value | on |
//! |---|---|---|
//! | `endpoint` | method and route template, such as `POST /orders/{id}`; the template of a fallback is `*`, and a method that HTTP does not define `OTHER` | all |
//! | `key` | the first eight hex digits of the storage key: enough to find the lines of one key, too few to look a key up | all whose key is good and whose extractors passed |
//! | `execution` | the id of the execution, which its record keeps | executions |
//! | `replay_of` | the `execution` that left the record which answers | replays |
//! | `replay_of_trace` | the id of the trace that that execution belonged to, where its request had a `traceparent`: with it, a replay leads to the span that made the record. A link by span id would not, since ids of closed spans are used again | replays |
//! | `outcome` | `executed`: the body ran for this request. `replayed`: a record answered. `refused`: the runtime did. `rejected`: an extractor did. `unprotected`: the body ran without a claim, since the store could not be asked and the policy says [`dangerously_run_without_store`](crate::Policy::dangerously_run_without_store). `left`: the client was gone before any of these. `shadow`: nothing was enforced | all |
//! | `code` | that of the [`Refusal`] | refusals |
//! | `would` | what would have happened: `execute`, `replay`, `wait` (for the execution in flight), `reject` (a body that is too large or breaks off), `unread` (a body too large or too slow to judge the request in shadow mode), or the code of a refusal | endpoints in shadow mode |
//! | `store_us` | microseconds that the store took for this request, renewals of a lease not counted | all that asked it |
//! | `body_us` | microseconds from the start of the body to its response; what is streamed afterwards is not counted | executions |
//!
//! `outcome`, `code`, `would` and the times are written when everything is over, so they are there when the span closes. A request
//! without a key that needs none has no span.
//!
//! # Events
//!
//! An execution and a replay are no events at `INFO`: the span says it all. Targets begin with the name of the crate, so
//! `RUST_LOG=idem=info` shows all of them.
//!
//! | level | target | event |
//! |---|---|---|
//! | `ERROR` | `idem_axum` | a refusal because the outcome is unknown, the store cannot be asked, or the layer is missing; a body that panicked |
//! | `ERROR` | `idem_runtime` | an end that could not be recorded for good, so that its outcome is unknown; a lease lost while its body runs; a body that runs without protection, as its policy says |
//! | `WARN` | `idem_axum` | a refusal because the store is full or too many bodies run |
//! | `WARN` | `idem_runtime` | an end that could not be recorded yet, and is tried again; a lease that could not be renewed yet; executions that a drain or the last handle left running; no thread for the memory of expired records |
//! | `WARN` | `idem_redis`, `idem_sqlx` | a server whose settings may lose records, an answer for which Redis had no room, expired rows that could not be deleted |
//! | `INFO` | `idem_runtime` | an operator who settled an unknown outcome or had a key forgotten |
//! | `INFO` | `idem_axum` | any other refusal, with its `code` |
//! | `INFO` | `idem_axum` | a request in shadow mode that would not have run, with its `would` |
//! | `DEBUG` | `idem_axum` | an execution that begins, a replay that is sent, a request in shadow mode that would have run as well |
//! | `DEBUG` | `idem_redis`, `idem_sqlx` | versions, clean-up, waiters that must look for themselves |
//!
//! No event and no span has a raw key, a body, a cookie, an `Authorization` or a path that a client chose.
//!
//! # Metrics
//!
//! With the feature `metrics`, the engine counts through the facade of the crate
//! [`metrics`](https://docs.rs/metrics/0.24): executions, replays, refusals, what runs and what waits, the times of the body and
//! of each step of the store, and what goes wrong. The table of all of them is in the module `metrics` of this crate.
//! `examples/observed` in the repository is a service with an endpoint for Prometheus and a dashboard for Grafana.
//!
//! # Rolling out
//!
//! Before an endpoint that is in use gets rules, let them run beside it: `#[idempotent(shadow, ..)]`, or
//! [`Policy::shadow`](crate::Policy::shadow).
//!
//! 1. Declare the rules you mean to have, and `shadow`. Mount the layer: without it the endpoint answers 500, in shadow mode too.
//! 2. Let it run for as long as your clients retry, a day say, and look at `idempotency_shadow_total` by `would`:
//!    `execute` and `replay` are what the attribute is for. `idempotency_key_missing` and `idempotency_key_invalid` are
//!    clients that would be turned away. `idempotency_key_mismatch` is a client that uses a key twice, or a `fingerprint` that
//!    holds something which changes from one retry to the next. `idempotency_key_locked` is a client that retries too early:
//!    `in_flight = wait(..)` may suit it better. `idempotency_store_full` and the like are sizes to choose.
//! 3. Take `shadow` away. What was recorded meanwhile is replayed from then on, for as long as its `ttl` says.
//!
//! What holds in shadow mode:
//!
//! - The body runs for every request, in the request's own future, and its own answer is sent: a client that hangs up cuts it
//!   off, a panic closes the connection, task-locals reach it, and two requests with one key both run, all as without the
//!   attribute. No refusal is sent but for the missing layer.
//! - The store is asked beside the body, which never waits for it; where it does not answer, that costs a task for five
//!   seconds.
//! - The first of the requests with one key has the claim, and what it answers is recorded under it, as its client
//!   reads it: no frame is asked for before, and where the client does not read to the end, the claim is given back. A body that was cut off gives the claim back, so a retry counts as `execute`, although under enforced
//!   rules the body would have run to its end.
//! - Where the fingerprint has `body` or `json`, the request's body is read before the handler gets it: at most 2 MiB of it, and
//!   for at most one second. One that is larger or slower is handed on as it came and counts as `unread`, since enforced rules
//!   would read it to its end, whatever that takes; one that is larger than an extractor may read, or breaks off, counts as
//!   `reject`. Such a request is not looked up, and nothing of it is recorded.
//! - Bodies in shadow mode take none of the places of enforced ones, and
//!   [`executions`](idem_runtime::Idempotency::executions) does not count them; over
//!   [`max_executions`](idem_runtime::IdempotencyBuilder::max_executions) of their own they run without being recorded.
//! - [`IdempotencyKey`](crate::IdempotencyKey) as an argument is the handler's own wish, so it rejects a request without a good
//!   key as ever: take `Option<IdempotencyKey>` meanwhile. Its lease is never lost.
//!
//! # Cost
//!
//! Where no subscriber wants the span and the feature `metrics` is off, nothing is put together and no time is taken.

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use idem_runtime::Observation;

use crate::refusal::Refusal;
use crate::request::Source;

/// Begins to observe a request.
pub(crate) fn observe(parts: &Parts) -> Observation {
    Observation::new(|| Source::of(parts).endpoint())
}

/// Counts a request that runs unprotected, since it has no key and needs none.
pub(crate) fn unprotected(parts: &Parts) {
    Observation::unprotected(|| Source::of(parts).endpoint());
}

/// Refuses the request: the one way to do so, so that what is answered is what is seen.
pub(crate) fn refuse(observation: &Observation, refusal: Refusal) -> Response {
    observation.refused(refusal.code());
    observation.in_scope(|| refusal.into_response())
}

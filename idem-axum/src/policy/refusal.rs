//! Refusals: responses made by the runtime itself. Their statuses, codes, `Retry-After` and events.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use idem_runtime::{InvalidKey, MAX_KEY, RefusalReason, StoreError, codes, panics};

use super::{Policy, Statuses, render};

/// A response made by the runtime itself. For most variants the handler has not started. The others are
/// [`HandlerPanicked`](Self::HandlerPanicked) and [`HandlerTimedOut`](Self::HandlerTimedOut), which say how it ended,
/// [`NotReplayable`](Self::NotReplayable), which says that it ran, and [`OutcomeUnknown`](Self::OutcomeUnknown), which says that
/// it may have.
///
/// A response with `Retry-After` means: repeat the same request with the same key. One without means: do not.
///
/// | refusal | status | `code` | also |
/// |---|---|---|---|
/// | [`KeyMissing`](Self::KeyMissing) | 400 | `idempotency_key_missing` | |
/// | [`KeyInvalid`](Self::KeyInvalid) | 400 | `idempotency_key_invalid` | says what is wrong |
/// | [`InFlight`](Self::InFlight) | 409 or as declared | `idempotency_key_locked` | `Retry-After: 1`, unless the status is a 2xx |
/// | [`Mismatch`](Self::Mismatch) | 422 or as declared | `idempotency_key_mismatch` | |
/// | [`PolicyChanged`](Self::PolicyChanged) | 409 | `idempotency_policy_changed` | |
/// | [`OutcomeUnknown`](Self::OutcomeUnknown) | 409 | `idempotency_outcome_unknown` | |
/// | [`NotReplayable`](Self::NotReplayable) | 409 | `idempotency_not_replayable` | |
/// | [`StoreUnavailable`](Self::StoreUnavailable) | 503 | `idempotency_store_unavailable` | `Retry-After: 1`, unless a record cannot be read |
/// | [`StoreFull`](Self::StoreFull) | 503 | `idempotency_store_full` | `Retry-After: 5` |
/// | [`LayerMissing`](Self::LayerMissing) | 500 | `idempotency_layer_missing` | logged as an error |
/// | [`TooManyExecutions`](Self::TooManyExecutions) | 503 | `idempotency_too_many_executions` | `Retry-After: 1` |
/// | [`HandlerPanicked`](Self::HandlerPanicked) | 500 | `idempotency_handler_panicked` | recorded if `record` has 500 and the handler has no `Tx`, unlike the others |
/// | [`HandlerTimedOut`](Self::HandlerTimedOut) | 504 | `idempotency_handler_timed_out` | recorded if `record` has 504 and the handler has no `Tx`, unlike the others |
///
/// The default body is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail` and `code`; `to_string()` returns
/// the `detail`. The policy's `errors` function makes another response from the variant, to which `Retry-After` and a `Link` are added:
///
/// ```
/// use axum::{Json, response::{IntoResponse, Response}};
/// use idem_axum::{Refusal, idempotent};
///
/// fn errors(refusal: &Refusal) -> Response {
///     let message = match refusal {
///         Refusal::InFlight { .. } => "a request with this key is being processed",
///         Refusal::Mismatch { .. } => "this key was used for a different request",
///         other => other.code(),
///     };
///     (refusal.status(), Json(serde_json::json!({ "message": message }))).into_response()
/// }
///
/// #[idempotent(errors = errors)]
/// async fn pay() {}
/// ```
///
/// The response of a refusal carries the `Refusal` as an extension, for middleware that logs or counts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The endpoint requires a key, and the request has none.
    #[non_exhaustive]
    KeyMissing {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The key is malformed, or sent twice.
    #[non_exhaustive]
    KeyInvalid {
        /// The endpoint's policy.
        policy: &'static Policy,
        /// What is wrong with the key.
        reason: InvalidKey,
    },
    /// The same request is being processed.
    #[non_exhaustive]
    InFlight {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The key belongs to another request, running or recorded.
    #[non_exhaustive]
    Mismatch {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The key belongs to a request to the same endpoint with another fingerprint, made under other rules. Another version of the endpoint
    /// had another handler, `fingerprint`, `scope` or key, or another service shares the store. It is not known whether it was the same
    /// request, so it is neither replayed nor called a mismatch.
    ///
    /// A store that cannot be inspected does not tell the rules of a claim in flight. Then the refusal is a [`Mismatch`](Self::Mismatch).
    ///
    /// For operators: expect it during a rolling deployment that changes the rules, if a retry reaches the other version. It ends when the
    /// records of the old version expire, or when [`forget`](crate::Idempotency::forget) removes them. Otherwise two services share one
    /// store: give each its own [`namespace`](crate::IdempotencyBuilder::namespace).
    #[non_exhaustive]
    PolicyChanged {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The owner of the claim disappeared, and what its handler did is unknown. Or another run took over the claim of this very
    /// request before the response was recorded, under `abandoned = rerun`.
    #[non_exhaustive]
    OutcomeUnknown {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The request was processed, but its response was too large for the policy or the store, or its stream broke off. There is nothing to
    /// replay.
    #[non_exhaustive]
    NotReplayable {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The store could not be reached, its reply was not understood, or its record cannot be read.
    #[non_exhaustive]
    StoreUnavailable {
        /// The endpoint's policy.
        policy: &'static Policy,
        /// The error of the store.
        source: StoreError,
    },
    /// The store has no room for a new key.
    #[non_exhaustive]
    StoreFull {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The developer did not mount [`IdempotencyLayer`](crate::IdempotencyLayer).
    #[non_exhaustive]
    LayerMissing {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The maximum number of executions is running.
    #[non_exhaustive]
    TooManyExecutions {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The handler panicked, and may have had effects before. Without a `Tx` the response is recorded if the policy's `record` has 500, and
    /// then a replay is the same but for the replay header.
    #[non_exhaustive]
    HandlerPanicked {
        /// The endpoint's policy.
        policy: &'static Policy,
        /// `true` if the handler has a `Tx`: then what it wrote with that was undone, nothing is recorded, and a retry runs it again.
        undone: bool,
    },
    /// The handler ran longer than the policy's [`timeout`](Policy::timeout) and was dropped. Without a `Tx` the response is recorded if
    /// the policy's `record` has 504, and then a replay is the same but for the replay header.
    #[non_exhaustive]
    HandlerTimedOut {
        /// The endpoint's policy.
        policy: &'static Policy,
        /// `true` if the handler has a `Tx`: then what it wrote with that was undone, nothing is recorded, and a retry runs it again.
        undone: bool,
    },
}

/// What does not depend on the request: one row for each refusal.
struct Facts {
    code: &'static str,
    title: &'static str,
    status: u16,
    /// When a retry of the identical request may succeed, in seconds. `None` if waiting does not help.
    retry_after: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(reason: RefusalReason, policy: &'static Policy) -> Self {
        match reason {
            RefusalReason::InFlight => Self::InFlight { policy },
            RefusalReason::Mismatch => Self::Mismatch { policy },
            RefusalReason::PolicyChanged => Self::PolicyChanged { policy },
            RefusalReason::OutcomeUnknown => Self::OutcomeUnknown { policy },
            RefusalReason::NotReplayable => Self::NotReplayable { policy },
            RefusalReason::StoreUnavailable(source) => Self::StoreUnavailable { policy, source },
            RefusalReason::StoreFull => Self::StoreFull { policy },
            RefusalReason::TooManyExecutions => Self::TooManyExecutions { policy },
            // A reason that this version does not know. The handler did not run.
            other => Self::StoreUnavailable { policy, source: StoreError::unavailable(other) },
        }
    }

    fn facts(&self) -> Facts {
        let (code, title, status, retry_after) = match self {
            Self::KeyMissing { .. } => ("idempotency_key_missing", "Idempotency key missing", 400, None),
            Self::KeyInvalid { .. } => ("idempotency_key_invalid", "Idempotency key invalid", 400, None),
            Self::InFlight { policy } => {
                // An acknowledged request is not to be repeated.
                let retry_after = if policy.in_flight.status < 300 { None } else { Some(1) };
                (codes::KEY_LOCKED, "Request in progress", policy.in_flight.status, retry_after)
            }
            Self::Mismatch { policy } => {
                (codes::KEY_MISMATCH, "Idempotency key used for another request", policy.mismatch, None)
            }
            Self::PolicyChanged { .. } => (codes::POLICY_CHANGED, "Idempotency rules changed", 409, None),
            Self::OutcomeUnknown { .. } => (codes::OUTCOME_UNKNOWN, "Outcome unknown", 409, None),
            Self::NotReplayable { .. } => (codes::NOT_REPLAYABLE, "Response not available again", 409, None),
            Self::StoreUnavailable { source, .. } => {
                let is_retryable = RefusalReason::StoreUnavailable(source.clone()).is_retryable();
                (codes::STORE_UNAVAILABLE, "Idempotency store unavailable", 503, is_retryable.then_some(1))
            }
            Self::StoreFull { .. } => (codes::STORE_FULL, "Idempotency store full", 503, Some(5)),
            Self::LayerMissing { .. } => ("idempotency_layer_missing", "Idempotency layer missing", 500, None),
            Self::TooManyExecutions { .. } => {
                (codes::TOO_MANY_EXECUTIONS, "Too many requests in progress", 503, Some(1))
            }
            Self::HandlerPanicked { .. } => ("idempotency_handler_panicked", "Request failed", 500, None),
            Self::HandlerTimedOut { .. } => ("idempotency_handler_timed_out", "Request took too long", 504, None),
        };
        Facts { code, title, status, retry_after }
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        // The policy accepts only final statuses.
        StatusCode::from_u16(self.facts().status).unwrap_or(StatusCode::CONFLICT)
    }

    /// Returns the name of this refusal, for programs. It never changes.
    pub fn code(&self) -> &'static str {
        self.facts().code
    }

    /// Returns when a retry of the identical request may succeed; `None` if waiting does not help.
    pub fn retry_after(&self) -> Option<Duration> {
        self.facts().retry_after.map(Duration::from_secs)
    }

    /// Returns the policy of the endpoint that refused.
    pub fn policy(&self) -> &'static Policy {
        match self {
            Self::KeyMissing { policy }
            | Self::KeyInvalid { policy, .. }
            | Self::InFlight { policy }
            | Self::Mismatch { policy }
            | Self::PolicyChanged { policy }
            | Self::OutcomeUnknown { policy }
            | Self::NotReplayable { policy }
            | Self::StoreUnavailable { policy, .. }
            | Self::StoreFull { policy }
            | Self::LayerMissing { policy }
            | Self::TooManyExecutions { policy }
            | Self::HandlerPanicked { policy, .. }
            | Self::HandlerTimedOut { policy, .. } => policy,
        }
    }

    /// Returns the default response, problem details (RFC 9457): for an `errors` function that only adds to it.
    ///
    /// ```
    /// use axum::http::HeaderValue;
    /// use axum::response::Response;
    /// use idem_axum::{Refusal, idempotent};
    ///
    /// fn with_help(refusal: &Refusal) -> Response {
    ///     let mut response = refusal.problem();
    ///     response.headers_mut().insert("link", HeaderValue::from_static("</docs/retries>; rel=\"help\""));
    ///     response
    /// }
    ///
    /// #[idempotent(errors = with_help)]
    /// async fn pay() {}
    /// ```
    pub fn problem(&self) -> Response {
        render::problem(self)
    }

    /// Returns the response as it is sent, but for the extension.
    pub(crate) fn rendered(&self) -> Response {
        // The function is the user's. If it panics, the client still learns what to do.
        let mut response = catch_unwind(AssertUnwindSafe(|| (self.policy().errors)(self))).unwrap_or_else(|panic| {
            panics::discard(panic);
            tracing::error!(
                "the function `errors` of a policy panicked; the response is the default one of the refusal"
            );
            self.problem()
        });
        if let Some(after) = self.retry_after() {
            response.headers_mut().entry(RETRY_AFTER).or_insert(HeaderValue::from(after.as_secs()));
        }
        if Statuses::BODILESS.contains(response.status().as_u16()) {
            *response.body_mut() = Body::empty();
            response.headers_mut().remove(CONTENT_TYPE);
        }
        response
    }

    /// Returns a few words for a person.
    pub(crate) fn title(&self) -> &'static str {
        self.facts().title
    }

    /// Logs the refusal for the operator, at the level that fits what is to be done about it.
    fn log(&self) {
        let code = self.code();
        match self {
            Self::LayerMissing { .. } => tracing::error!(
                code,
                "an `#[idempotent]` endpoint was called, but its router has no `IdempotencyLayer`, so the request was refused; \
                 add `.layer(IdempotencyLayer::new(idempotency))` after its route"
            ),
            Self::StoreUnavailable { source, .. } => tracing::error!(
                code,
                error = %source,
                cause = std::error::Error::source(source).map(tracing::field::display),
                "the idempotency store is unavailable; the request was refused"
            ),
            Self::OutcomeUnknown { .. } => tracing::error!(
                code,
                "the owner of the claim disappeared, and what its handler did is unknown; the request was refused, and so are all \
                 retries until the key is settled, forgotten or expired"
            ),
            Self::PolicyChanged { .. } => tracing::warn!(
                code,
                "the key was used under other rules, by another version of the endpoint or by another service; the request was \
                 refused; if no deployment is in progress, give each service its own `Idempotency::builder(store).namespace(..)`"
            ),
            Self::StoreFull { .. } => {
                tracing::warn!(code, "the idempotency store has no room for a new key; the request was refused");
            }
            Self::TooManyExecutions { .. } => {
                tracing::warn!(code, "the maximum number of executions is running; the request was refused");
            }
            // The message went to the panic hook. It may contain anything, so it is not repeated.
            Self::HandlerPanicked { .. } => {
                tracing::error!(code, "the handler of an `#[idempotent]` endpoint panicked")
            }
            Self::HandlerTimedOut { policy, .. } => tracing::error!(
                code,
                timeout = ?policy.timeout.unwrap_or_default(),
                "the handler of an `#[idempotent]` endpoint ran longer than the `timeout` of its policy, and was dropped"
            ),
            Self::KeyInvalid { reason, .. } => tracing::info!(code, %reason, "the request was refused"),
            Self::KeyMissing { .. } | Self::InFlight { .. } | Self::Mismatch { .. } | Self::NotReplayable { .. } => {
                tracing::info!(code, "the request was refused");
            }
        }
    }
}

/// What happened, what was not done, and what to do now. Never the key, nor anything that was stored.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.policy().header;
        match self {
            Self::KeyMissing { policy } if policy.key_from_arguments => f.write_str(
                "This endpoint takes its key from the content of the request, and the request has none. Nothing was done. Send \
                 the request with the id that names the operation, and retry with the same id.",
            ),
            Self::KeyMissing { .. } => write!(
                f,
                "This endpoint needs the header `{header}`, and the request has none. Nothing was done. Send the request \
                 with a key that is unique for this operation, and retry with the same key."
            ),
            Self::KeyInvalid { policy, reason } => write!(
                f,
                "The header `{header}` is not a valid key: {reason}. Nothing was done. Send one key of {} to {MAX_KEY} \
                 visible ASCII characters, in quotes if it has a comma, a semicolon or a quote.",
                policy.min_key
            ),
            Self::InFlight { .. } if self.retry_after().is_none() => f.write_str(
                "A request with this key is being processed. It was not started again, and need not be sent again.",
            ),
            Self::InFlight { .. } => f.write_str(
                "A request with this key is being processed. It was not started again. Retry the identical request in a \
                 moment to get its response.",
            ),
            Self::Mismatch { .. } => f.write_str(
                "This key was used for a different request. Nothing was done. Retry with exactly the same request, or use \
                 a new key for a new operation.",
            ),
            Self::PolicyChanged { .. } => f.write_str(
                "This key was used before the rules of this endpoint changed, or by another service, so it cannot be told whether \
                 for this request. Nothing was done. Check the state of the operation before you repeat it with a new key.",
            ),
            Self::OutcomeUnknown { .. } => f.write_str(
                "It is not known whether the request with this key took effect: it was interrupted, or another run took \
                 its place. Check the state of the operation before you repeat it with a new key.",
            ),
            Self::NotReplayable { .. } => f.write_str(
                "The request with this key was processed, but its response was not recorded. It was not started again. Look \
                 the result up, and do not repeat the operation with a new key.",
            ),
            Self::StoreUnavailable { source: StoreError::Unreadable(_), .. } => f.write_str(
                "What is stored of the request with this key cannot be read. Nothing was done now, and it may have been processed \
                 before. Look the result up, and do not repeat the operation with a new key.",
            ),
            Self::StoreUnavailable { .. } => f.write_str(
                "It could not be checked whether this request was processed. Retry the identical request in a moment.",
            ),
            Self::StoreFull { .. } => f.write_str(
                "There is no room for a new idempotency key at the moment. Nothing was done. Retry the identical request \
                 later.",
            ),
            Self::LayerMissing { .. } => f.write_str(
                "This endpoint is not set up: its router lacks `.layer(IdempotencyLayer::new(idempotency))`. Nothing was \
                 done.",
            ),
            Self::TooManyExecutions { .. } => f.write_str(
                "Too many requests are being processed. Nothing was done. Retry the identical request in a moment.",
            ),
            Self::HandlerPanicked { undone: true, .. } => f.write_str(
                "The request failed while it was processed. What it wrote in its transaction was undone, and a retry is processed \
                 again.",
            ),
            Self::HandlerTimedOut { undone: true, .. } => f.write_str(
                "The request was stopped because it took too long. What it wrote in its transaction was undone, and a retry is \
                 processed again.",
            ),
            Self::HandlerPanicked { .. } => f.write_str(
                "The request failed while it was processed, and may have taken effect in part. Check the state of the operation \
                 before you repeat it with a new key.",
            ),
            Self::HandlerTimedOut { .. } => f.write_str(
                "The request was stopped because it took too long, and may have taken effect in part. Check the state of the \
                 operation before you repeat it with a new key.",
            ),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::StoreUnavailable { source, .. } => Some(source),
            Self::KeyInvalid { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

/// The response that the policy's `errors` function makes, or the default one if that function panics. It has this refusal as an
/// extension, and `Retry-After` if waiting helps and the function did not set it.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.log();
        let mut response = self.rendered();
        response.extensions_mut().insert(self);
        response
    }
}

//! Refusals: answers made by the runtime itself.

use std::fmt;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use idem_runtime::{InvalidKey, MAX_KEY, Refused, StoreError};
use serde::Serialize;

use crate::policy::Policy;

/// An answer made by the runtime itself. For every variant but two the body has not started;
/// [`NotReplayable`](Self::NotReplayable) says that it ran, and [`OutcomeUnknown`](Self::OutcomeUnknown) that nobody knows.
///
/// | refusal | status | `code` | also |
/// |---|---|---|---|
/// | [`KeyMissing`](Self::KeyMissing) | 400 | `idempotency_key_missing` | |
/// | [`KeyInvalid`](Self::KeyInvalid) | 400 | `idempotency_key_invalid` | says what is wrong |
/// | [`InFlight`](Self::InFlight) | 409 or as declared | `idempotency_key_locked` | `Retry-After: 1` |
/// | [`Mismatch`](Self::Mismatch) | 422 or as declared | `idempotency_key_mismatch` | |
/// | [`OutcomeUnknown`](Self::OutcomeUnknown) | 409 | `idempotency_outcome_unknown` | |
/// | [`NotReplayable`](Self::NotReplayable) | 409 | `idempotency_not_replayable` | |
/// | [`StoreUnavailable`](Self::StoreUnavailable) | 503 | `idempotency_store_unavailable` | `Retry-After: 1` |
/// | [`StoreFull`](Self::StoreFull) | 503 | `idempotency_store_full` | `Retry-After: 5` |
/// | [`LayerMissing`](Self::LayerMissing) | 500 | `idempotency_layer_missing` | logged as an error |
/// | [`TooManyExecutions`](Self::TooManyExecutions) | 503 | `idempotency_too_many_executions` | `Retry-After: 1` |
///
/// The default body is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail` and `code`. The
/// policy's `errors` function makes another one, with the variant in hand:
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
    /// The owner of the claim is gone, and what its body did is unknown. Or the claim of this very request went to another
    /// run before the answer was recorded, as under `abandoned = rerun`.
    #[non_exhaustive]
    OutcomeUnknown {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The request was processed, but its answer was too large, or its stream broke, so there is nothing to replay.
    #[non_exhaustive]
    NotReplayable {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
    /// The store could not be asked, or its answer not understood.
    #[non_exhaustive]
    StoreUnavailable {
        /// The endpoint's policy.
        policy: &'static Policy,
        /// What the store said.
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
    /// As many bodies run as may run at once.
    #[non_exhaustive]
    TooManyExecutions {
        /// The endpoint's policy.
        policy: &'static Policy,
    },
}

impl Refusal {
    pub(crate) fn of(refused: Refused, policy: &'static Policy) -> Self {
        match refused {
            Refused::InFlight => Self::InFlight { policy },
            Refused::Mismatch => Self::Mismatch { policy },
            Refused::OutcomeUnknown => Self::OutcomeUnknown { policy },
            Refused::NotReplayable => Self::NotReplayable { policy },
            Refused::StoreUnavailable(source) => Self::StoreUnavailable { policy, source },
            Refused::StoreFull => Self::StoreFull { policy },
            Refused::TooManyExecutions => Self::TooManyExecutions { policy },
            // A refusal that this version does not know: the body did not run, which is all that can be said.
            other => Self::StoreUnavailable { policy, source: StoreError::unavailable(other) },
        }
    }

    /// The status this refusal is answered with.
    pub fn status(&self) -> StatusCode {
        let declared = match self {
            Self::KeyMissing { .. } | Self::KeyInvalid { .. } => return StatusCode::BAD_REQUEST,
            Self::InFlight { policy } => policy.in_flight.status,
            Self::Mismatch { policy } => policy.mismatch,
            Self::OutcomeUnknown { .. } | Self::NotReplayable { .. } => return StatusCode::CONFLICT,
            Self::StoreUnavailable { .. } | Self::StoreFull { .. } | Self::TooManyExecutions { .. } => {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            Self::LayerMissing { .. } => return StatusCode::INTERNAL_SERVER_ERROR,
        };
        // The policy let only 400 to 599 in.
        StatusCode::from_u16(declared).unwrap_or(StatusCode::CONFLICT)
    }

    /// The name of this refusal, for programs: never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "idempotency_key_missing",
            Self::KeyInvalid { .. } => "idempotency_key_invalid",
            Self::InFlight { .. } => "idempotency_key_locked",
            Self::Mismatch { .. } => "idempotency_key_mismatch",
            Self::OutcomeUnknown { .. } => "idempotency_outcome_unknown",
            Self::NotReplayable { .. } => "idempotency_not_replayable",
            Self::StoreUnavailable { .. } => "idempotency_store_unavailable",
            Self::StoreFull { .. } => "idempotency_store_full",
            Self::LayerMissing { .. } => "idempotency_layer_missing",
            Self::TooManyExecutions { .. } => "idempotency_too_many_executions",
        }
    }

    /// When a retry of the identical request may be answered; `None` where waiting does not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::InFlight { .. } | Self::StoreUnavailable { .. } | Self::TooManyExecutions { .. } => {
                Some(Duration::from_secs(1))
            }
            Self::StoreFull { .. } => Some(Duration::from_secs(5)),
            _ => None,
        }
    }

    /// The policy of the endpoint that refused.
    pub fn policy(&self) -> &'static Policy {
        match self {
            Self::KeyMissing { policy }
            | Self::KeyInvalid { policy, .. }
            | Self::InFlight { policy }
            | Self::Mismatch { policy }
            | Self::OutcomeUnknown { policy }
            | Self::NotReplayable { policy }
            | Self::StoreUnavailable { policy, .. }
            | Self::StoreFull { policy }
            | Self::LayerMissing { policy }
            | Self::TooManyExecutions { policy } => policy,
        }
    }

    /// The default response, problem details (RFC 9457): for an `errors` function that only adds to it.
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
        problem(self)
    }

    /// Says it to the operator, in the words and at the level that fit what is to be done about it.
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
                "the owner of the claim is gone, and what its body did is unknown; the request was refused, and so are all \
                 retries until somebody has looked and the claim is forgotten or over"
            ),
            Self::StoreFull { .. } => {
                tracing::warn!(code, "the idempotency store has no room for a new key; the request was refused");
            }
            Self::TooManyExecutions { .. } => {
                tracing::warn!(code, "as many bodies run as may run at once; the request was refused");
            }
            Self::KeyInvalid { reason, .. } => tracing::info!(code, %reason, "the request was refused"),
            Self::KeyMissing { .. } | Self::InFlight { .. } | Self::Mismatch { .. } | Self::NotReplayable { .. } => {
                tracing::info!(code, "the request was refused");
            }
        }
    }

    /// A few words for a person.
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::KeyMissing { .. } => "Idempotency key missing",
            Self::KeyInvalid { .. } => "Idempotency key invalid",
            Self::InFlight { .. } => "Request in progress",
            Self::Mismatch { .. } => "Idempotency key used for another request",
            Self::OutcomeUnknown { .. } => "Outcome unknown",
            Self::NotReplayable { .. } => "Response not available again",
            Self::StoreUnavailable { .. } => "Idempotency store unavailable",
            Self::StoreFull { .. } => "Idempotency store full",
            Self::LayerMissing { .. } => "Idempotency layer missing",
            Self::TooManyExecutions { .. } => "Too many requests in progress",
        }
    }
}

/// What happened, what was not done, and what to do now. Never the key, nor anything that was stored.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.policy().header;
        match self {
            Self::KeyMissing { .. } => write!(
                f,
                "This endpoint needs the header `{header}`, and the request has none. Nothing was done. Send the request \
                 with a key that is unique for this operation, and retry with the same key."
            ),
            Self::KeyInvalid { policy, reason } => write!(
                f,
                "The header `{header}` is not a valid key: {reason}. Nothing was done. Send one key of {} to {MAX_KEY} \
                 visible ASCII characters.",
                policy.min_key
            ),
            Self::InFlight { .. } => f.write_str(
                "A request with this key is being processed. It was not started again. Retry the identical request in a \
                 moment to get its answer.",
            ),
            Self::Mismatch { .. } => f.write_str(
                "This key was used for a different request. Nothing was done. Retry with exactly the same request, or use \
                 a new key for a new operation.",
            ),
            Self::OutcomeUnknown { .. } => f.write_str(
                "It is not known whether the request with this key took effect: it was interrupted, or another run took \
                 its place. Check the state of the operation before you repeat it with a new key.",
            ),
            Self::NotReplayable { .. } => f.write_str(
                "The request with this key was processed, but its response was not kept. It was not started again. Look \
                 the result up, and do not repeat the operation with a new key.",
            ),
            Self::StoreUnavailable { .. } => f.write_str(
                "It could not be checked whether this request was processed before. Nothing was done. Retry the identical \
                 request in a moment.",
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

/// The response that the policy's `errors` function makes, with this refusal as an extension, and with `Retry-After` where
/// waiting helps and the function did not say how long.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.log();
        let mut response = (self.policy().errors)(&self);
        if let Some(after) = self.retry_after() {
            response.headers_mut().entry(RETRY_AFTER).or_insert(HeaderValue::from(after.as_secs()));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Problem details, RFC 9457.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: String,
    code: &'a str,
}

/// The default `errors`: problem details.
pub(crate) fn problem(refusal: &Refusal) -> Response {
    let body = Problem {
        r#type: format!("urn:problem-type:{}", refusal.code()),
        title: refusal.title(),
        status: refusal.status().as_u16(),
        detail: refusal.to_string(),
        code: refusal.code(),
    };
    json(refusal, "application/problem+json", &body)
}

/// Stripe's shape of an error.
#[derive(Serialize)]
struct StripeError<'a> {
    error: StripeErrorObject<'a>,
}

#[derive(Serialize)]
struct StripeErrorObject<'a> {
    r#type: &'a str,
    code: &'a str,
    message: String,
}

/// The `errors` of [`Policy::STRIPE`].
pub(crate) fn stripe(refusal: &Refusal) -> Response {
    let r#type = match refusal {
        Refusal::Mismatch { .. } | Refusal::InFlight { .. } | Refusal::KeyInvalid { .. } => "idempotency_error",
        Refusal::KeyMissing { .. } => "invalid_request_error",
        _ => "api_error",
    };
    let code = match refusal {
        Refusal::InFlight { .. } => "idempotency_key_in_use",
        other => other.code(),
    };
    let error = StripeErrorObject { r#type, code, message: refusal.to_string() };
    json(refusal, "application/json", &StripeError { error })
}

fn json(refusal: &Refusal, content_type: &'static str, body: &impl Serialize) -> Response {
    // Serialising strings and numbers cannot fail; an empty body would still have the right status.
    let mut text = Vec::with_capacity(512);
    let body = serde_json::to_writer(&mut text, body).map(|()| text).unwrap_or_default();
    let mut response = (refusal.status(), body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

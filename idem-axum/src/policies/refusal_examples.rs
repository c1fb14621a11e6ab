//! The refusals of an endpoint, as its clients get them.

use axum::body::to_bytes;
use futures_util::FutureExt;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use idem_runtime::{InvalidKey, StoreError};
use serde::Serialize;
use serde_json::Value;

use crate::policy::{Policy, Refusal};

/// More than any problem has.
const MAX_BODY: usize = 64 * 1024;

/// One refusal in the document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RefusalExample {
    pub(crate) code: &'static str,
    pub(crate) title: &'static str,
    pub(crate) status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u64>,
    /// Whether it is recorded as a response of the handler is.
    #[serde(skip)]
    pub(crate) tells_of_an_execution: bool,
    /// Its body, where it is JSON.
    #[serde(skip)]
    pub(crate) body: Option<Value>,
}

/// All refusals that an endpoint with this policy may send, in the order in which they are found out.
///
/// Left out is the one for a router without the layer, which no service sends that works.
pub(super) fn by(policy: &'static Policy) -> Vec<RefusalExample> {
    let source = || StoreError::unavailable("the store cannot be reached");
    let refusals = [
        policy.required.then_some(Refusal::KeyMissing { policy }),
        // Every text is a key that the arguments may say.
        (!policy.key_from_arguments).then_some(Refusal::KeyInvalid { policy, reason: InvalidKey::Character }),
        Some(Refusal::InFlight { policy }),
        Some(Refusal::Mismatch { policy }),
        Some(Refusal::PolicyChanged { policy }),
        // Where a retry runs again, the first request gets it, if it is found to be overtaken.
        Some(Refusal::OutcomeUnknown { policy }),
        Some(Refusal::NotReplayable { policy }),
        Some(Refusal::StoreUnavailable { policy, source: source() }),
        Some(Refusal::StoreFull { policy }),
        Some(Refusal::TooManyExecutions { policy }),
        Some(Refusal::HandlerPanicked { policy, undone: false }),
        policy.timeout.map(|_| Refusal::HandlerTimedOut { policy, undone: false }),
    ];
    refusals.into_iter().flatten().map(|refusal| sent(&refusal)).collect()
}

/// What `errors` makes of it.
fn sent(refusal: &Refusal) -> RefusalExample {
    let (parts, body) = refusal.rendered().into_parts();
    let header = |name| parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    // A body that has to be waited for is left out.
    let body = to_bytes(body, MAX_BODY).now_or_never().and_then(Result::ok);
    RefusalExample {
        code: refusal.code(),
        title: refusal.title(),
        status: parts.status.as_u16(),
        content_type: header(CONTENT_TYPE).map(ToOwned::to_owned),
        // What `errors` sets may be a date.
        retry_after: header(RETRY_AFTER).and_then(|seconds| seconds.parse().ok()),
        tells_of_an_execution: matches!(refusal, Refusal::HandlerPanicked { .. } | Refusal::HandlerTimedOut { .. }),
        body: body.and_then(|body| serde_json::from_slice(&body).ok()),
    }
}

//! The span of a request, and its refusals. The guide's page on observing has the list of spans, events and metrics.

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use idem_runtime::RequestSpan;

use crate::policy::Refusal;
use crate::request::RequestInfo;

/// Opens the span of a request.
pub(crate) fn span(parts: &Parts) -> RequestSpan {
    RequestSpan::new(|| RequestInfo::of(parts).endpoint())
}

/// Counts a request that runs unprotected, since it has no key and needs none.
pub(crate) fn count_unprotected(parts: &Parts) {
    RequestSpan::count_unprotected(|| RequestInfo::of(parts).endpoint());
}

/// Refuses the request. Every refusal comes from here, so that what is sent is what is logged and counted.
pub(crate) fn refuse(span: &RequestSpan, refusal: Refusal) -> Response {
    span.refused(refusal.code());
    span.in_scope(|| refusal.into_response())
}

/// Warns that the callers of an endpoint are known by their cookies alone.
pub(crate) fn warn_of_cookie(request: &RequestInfo) {
    tracing::warn!(
        endpoint = request.endpoint().as_str(),
        "the callers of an `#[idempotent]` endpoint are told apart by their `Cookie` header, and a retry after a cookie has \
         changed is refused; declare whose key it is, such as `scope = user.id`, or `scope = global`"
    );
}

//! The span of a request, and its refusals. The guide's page on observing has the list of spans, events and metrics.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use idem_runtime::RequestSpan;

use crate::policy::Refusal;
use crate::request::RequestInfo;

/// Opens the span of a request.
pub(crate) fn span(parts: &Parts) -> RequestSpan {
    RequestSpan::new(|| RequestInfo::of(parts).endpoint())
}

/// A request that has no key and needs none. It has no span, unless it is refused or its arguments could have said a key.
pub(crate) struct Keyless {
    request: RequestInfo,
    span: Option<RequestSpan>,
}

impl Keyless {
    pub(crate) fn of(parts: &Parts) -> Self {
        Self { request: RequestInfo::without_trace(parts), span: None }
    }

    /// The arguments say no key.
    pub(crate) fn within(request: RequestInfo, span: RequestSpan) -> Self {
        Self { request, span: Some(span) }
    }

    /// Counts a handler that starts without protection.
    pub(crate) fn starts(&self) {
        match &self.span {
            Some(span) => span.without_key(|| self.request.endpoint()),
            None => RequestSpan::count_unprotected(|| self.request.endpoint()),
        }
    }

    /// Returns the span for a refusal.
    pub(crate) fn span(&self) -> RequestSpan {
        self.span.clone().unwrap_or_else(|| RequestSpan::new(|| self.request.endpoint()))
    }
}

/// The span of an execution, which may be refused.
#[derive(Clone)]
pub(crate) enum ExecutionSpan {
    Request(RequestSpan),
    Keyless(Arc<Keyless>),
}

impl ExecutionSpan {
    pub(crate) fn get(&self) -> RequestSpan {
        match self {
            Self::Request(span) => span.clone(),
            Self::Keyless(request) => request.span(),
        }
    }
}

/// Refuses the request. Every refusal but the rejections of the key's extractor comes from here, so that what is sent is what is logged and
/// counted.
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

//! What the layer and the endpoint leave in a request, for those that come after them.

use std::fmt;
use std::sync::Arc;

use axum::response::Response;
use http::HeaderValue;
use http::header::LINK;
use http::request::Parts;
use idem_runtime::{Idempotency, InvalidKey, RequestSpan};

use crate::key::IdempotencyKey;
use crate::policy::{Policy, Refusal};
use crate::warnings::Warnings;
use crate::{link_header, telemetry};

/// What the layer leaves in a request: one extension, which also has what the endpoint finds.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) config: Arc<LayerConfig>,
    /// Set by the endpoint, for the extractors.
    pub(crate) parsed: Option<ParsedKey>,
}

/// The key of a request, as an `#[idempotent]` endpoint read it by its own policy. Only an endpoint in shadow mode goes on with a
/// malformed one.
#[derive(Clone)]
pub(crate) struct ParsedKey {
    pub(crate) policy: &'static Policy,
    pub(crate) key: Result<Option<IdempotencyKey>, InvalidKey>,
}

/// Called with each request to an endpoint and the policy of the endpoint.
pub(crate) type PolicyCheck = Arc<dyn Fn(&Parts, &'static Policy) + Send + Sync>;

/// What the endpoints beneath one layer have in common.
#[derive(Clone)]
pub(crate) struct LayerConfig {
    pub(crate) idempotency: Idempotency,
    /// Points a refused client to the description of the endpoint.
    pub(crate) link: Option<HeaderValue>,
    /// Compares the endpoints with their description.
    pub(crate) check: Option<PolicyCheck>,
    pub(crate) warnings: Warnings,
}

impl LayerConfig {
    /// Returns the response of a refusal, as clients beneath this layer get it.
    pub(crate) fn refuse(&self, span: &RequestSpan, refusal: Refusal) -> Response {
        self.describe(telemetry::refuse(span, refusal))
    }

    /// Adds the link to the description of the endpoint to a refusal. Any other response stays as it is.
    pub(crate) fn describe(&self, response: Response) -> Response {
        describe(self.link.as_ref(), response)
    }
}

/// Adds `link`, which points to the description of the endpoint, to a refusal. Any other response stays as it is.
pub(crate) fn describe(link: Option<&HeaderValue>, mut response: Response) -> Response {
    if let Some(link) = link
        && response.extensions().get::<Refusal>().is_some()
        && !response.headers().get_all(LINK).iter().any(link_header::is_describedby)
    {
        response.headers_mut().append(LINK, link.clone());
    }
    response
}

impl fmt::Debug for LayerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerConfig")
            .field("idempotency", &self.idempotency)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

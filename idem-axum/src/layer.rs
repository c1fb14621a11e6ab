//! The layer: hands the engine to the endpoints beneath it.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Request};
use idem_runtime::Idempotency;
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{LayerConfig, PolicyCheck, RequestContext};
use crate::link_header;
use crate::warnings::Warnings;

/// Hands an [`Idempotency`] to the `#[idempotent]` endpoints beneath it, and changes nothing else. If several are mounted, the
/// innermost counts.
///
/// ```
/// use axum::{Router, routing::post};
/// use idem_axum::{Idempotency, IdempotencyLayer, idempotent};
///
/// #[idempotent(required)]
/// async fn pay() {}
///
/// let idempotency = Idempotency::in_memory();
/// let app: Router = Router::new().route("/pay", post(pay)).layer(IdempotencyLayer::new(idempotency.clone()));
/// ```
///
/// # One engine, one set of endpoints
/// A key is bound to the Rust path of the handler, the method and the route template. The path is that of its module and its name: methods
/// of two types in one module may have the same. If two routers serve the same handler at the same template for different purposes, say
/// on two ports, give each an [`Idempotency`] with a different namespace, or declare scopes that differ.
///
/// # Order of layers
/// Every extractor runs on every request, so authentication in an extractor always guards the record. Authentication in middleware guards
/// it as well, since the record is looked up in the handler, within all layers. A `TimeoutLayer` ends only the client's wait: the handler
/// continues, and a retry gets its response.
///
/// # Request bodies that were not read
/// A replay or a refusal may be ready before the request body was read, and so may the 504 or 500 of a handler that is stopped while it
/// reads it. Many clients cannot read a response that comes during their upload. So the rest of the body is read and discarded first, up
/// to 64 MiB and 30 seconds, whatever the body limit is. If that is not all of it, the response over HTTP/1.1 has `Connection: close`. A
/// client that waits for `100 Continue` gets its response at once, with the same header. No key is claimed meanwhile. The async runtime
/// needs its time driver, which `#[tokio::main]` enables.
#[derive(Clone, Debug)]
#[must_use = "a layer has no effect until it is mounted"]
pub struct IdempotencyLayer {
    config: Arc<LayerConfig>,
}

impl IdempotencyLayer {
    /// Makes a layer that hands out clones of `idempotency`. Keep one clone for [`Idempotency::drain`].
    pub fn new(idempotency: Idempotency) -> Self {
        Self { config: Arc::new(LayerConfig { idempotency, link: None, check: None, warnings: Warnings::default() }) }
    }

    /// Adds `Link: <uri>; rel="describedby"` to every refusal: for documentation that is elsewhere, or for a policy document
    /// whose path is different for clients than for the router.
    ///
    /// ```
    /// use idem_axum::{Idempotency, IdempotencyLayer};
    ///
    /// IdempotencyLayer::new(Idempotency::in_memory()).described_at("https://api.example.com/docs#retries");
    /// ```
    ///
    /// # Panics
    /// If `uri` is empty or has a character that no URI has.
    pub fn described_at(self, uri: &str) -> Self {
        self.with_link(link_header::describedby(uri))
    }

    pub(crate) fn with_link(self, link: HeaderValue) -> Self {
        Self { config: Arc::new(LayerConfig { link: Some(link), ..LayerConfig::clone(&self.config) }) }
    }

    pub(crate) fn with_check(self, check: PolicyCheck) -> Self {
        Self { config: Arc::new(LayerConfig { check: Some(check), ..LayerConfig::clone(&self.config) }) }
    }

    pub(crate) fn has_link(&self) -> bool {
        self.config.link.is_some()
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService { inner, config: Arc::clone(&self.config) }
    }
}

/// The service of [`IdempotencyLayer`].
#[derive(Clone, Debug)]
pub struct IdempotencyService<S> {
    inner: S,
    config: Arc<LayerConfig>,
}

impl<S, B> Service<Request<B>> for IdempotencyService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(RequestContext { config: Arc::clone(&self.config), parsed: None });
        self.inner.call(request)
    }
}

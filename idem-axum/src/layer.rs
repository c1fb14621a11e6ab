//! The layer: hands the engine to the endpoints beneath it.

use std::task::{Context, Poll};

use http::Request;
use idem_runtime::Idempotency;
use tower_layer::Layer;
use tower_service::Service;

use crate::extract::Presented;

/// Hands an [`Idempotency`] to the `#[idempotent]` endpoints beneath it, and touches nothing else. Where several are
/// mounted, the innermost counts.
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
/// An endpoint is known by its method and route template. Two routers that have the same template for different endpoints,
/// say one on a public and one on an internal port, need an [`Idempotency`] each, or scopes that tell them apart.
///
/// # Order of layers
/// Every extractor runs on every request, so authentication in an extractor always guards the record. Authentication in
/// middleware guards it as well, since the record is looked up in the handler, within all layers. A `TimeoutLayer` only cuts
/// the client's wait: the body goes on, and a retry gets its answer.
#[derive(Clone, Debug)]
#[must_use = "a layer has no effect until it is mounted"]
pub struct IdempotencyLayer {
    idempotency: Idempotency,
}

impl IdempotencyLayer {
    /// A layer that hands out clones of `idempotency`. Keep one clone for [`Idempotency::drain`].
    pub fn new(idempotency: Idempotency) -> Self {
        Self { idempotency }
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService { inner, idempotency: self.idempotency.clone() }
    }
}

/// What the layer leaves in a request: one extension, for what the endpoint finds as well.
#[derive(Clone)]
pub(crate) struct Mounted {
    pub(crate) idempotency: Idempotency,
    /// Set by the endpoint, for the extractors.
    pub(crate) presented: Option<Presented>,
}

/// The service of [`IdempotencyLayer`].
#[derive(Clone, Debug)]
pub struct IdempotencyService<S> {
    inner: S,
    idempotency: Idempotency,
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
        request.extensions_mut().insert(Mounted { idempotency: self.idempotency.clone(), presented: None });
        self.inner.call(request)
    }
}

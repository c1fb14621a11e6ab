//! The layer: hands the engine to the endpoints beneath it.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::Response;
use http::header::LINK;
use http::{HeaderValue, Request};
use idem_runtime::{Idempotency, Observation};
use tower_layer::Layer;
use tower_service::Service;

use crate::extract::Presented;
use crate::observing;
use crate::policies::{self, Documented, Policies};
use crate::refusal::Refusal;

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
    settings: Arc<Settings>,
}

/// What the endpoints beneath one layer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) idempotency: Idempotency,
    /// Points a refused client to what describes the endpoint.
    link: Option<HeaderValue>,
    pub(crate) documented: Option<Arc<Documented>>,
}

impl IdempotencyLayer {
    /// A layer that hands out clones of `idempotency`. Keep one clone for [`Idempotency::drain`].
    pub fn new(idempotency: Idempotency) -> Self {
        Self { settings: Arc::new(Settings { idempotency, link: None, documented: None }) }
    }

    /// Adds `Link: </path>; rel="describedby"` to every refusal, with the path of the policy document, and logs a warning,
    /// once for each, of an endpoint beneath the layer that the document lacks or describes wrongly. See [`Policies`].
    ///
    /// A response that the policy's `errors` function made keeps a `describedby` of its own. Call this when `policies` is
    /// complete: what is listed later is unknown to the layer. The comparison looks the route template up on each request.
    pub fn described_by<S>(self, policies: &Policies<S>) -> Self {
        let link = self.settings.link.clone().or_else(|| Some(policies::link(policies.path())));
        let documented = Some(Arc::new(policies.documented()));
        let idempotency = self.settings.idempotency.clone();
        Self { settings: Arc::new(Settings { idempotency, link, documented }) }
    }

    /// Adds `Link: <uri>; rel="describedby"` to every refusal: for documentation that is elsewhere, or for a policy document
    /// whose path is another one to clients than to the router.
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
        let link = Some(policies::link(uri));
        Self { settings: Arc::new(Settings { link, ..Settings::clone(&self.settings) }) }
    }
}

impl Settings {
    /// The response of a refusal, as clients beneath this layer get it.
    pub(crate) fn refuse(&self, observation: &Observation, refusal: Refusal) -> Response {
        self.describe(observing::refuse(observation, refusal))
    }

    /// Says of a refusal where the endpoint is described. Any other response stays as it is.
    pub(crate) fn describe(&self, mut response: Response) -> Response {
        if let Some(link) = &self.link
            && response.extensions().get::<Refusal>().is_some()
            && !response.headers().get_all(LINK).iter().any(policies::is_describedby)
        {
            response.headers_mut().append(LINK, link.clone());
        }
        response
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService { inner, settings: Arc::clone(&self.settings) }
    }
}

/// What the layer leaves in a request: one extension, for what the endpoint finds as well.
#[derive(Clone)]
pub(crate) struct Mounted {
    pub(crate) settings: Arc<Settings>,
    /// Set by the endpoint, for the extractors.
    pub(crate) presented: Option<Presented>,
}

/// The service of [`IdempotencyLayer`].
#[derive(Clone, Debug)]
pub struct IdempotencyService<S> {
    inner: S,
    settings: Arc<Settings>,
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
        request.extensions_mut().insert(Mounted { settings: Arc::clone(&self.settings), presented: None });
        self.inner.call(request)
    }
}

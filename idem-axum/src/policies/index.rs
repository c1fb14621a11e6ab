//! The list of endpoints and their policies, and the route of the document.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use bytes::Bytes;
use futures_util::FutureExt;
use idem_runtime::Fingerprint;

use super::check::ListedEndpoints;
use super::document::{DescribedRules, Document};
use crate::call::Call;
use crate::layer::IdempotencyLayer;
use crate::link_header;
use crate::policy::Policy;

/// The `#[idempotent]` endpoints of a service with their policies, and the document that publishes them, as
/// draft-ietf-httpapi-idempotency-key-header asks: clients, gateways and generators of clients read there which header to
/// send, how long a record lives, and what a refusal looks like.
///
/// ```
/// use axum::{Router, http::Method, routing::post};
/// use idem_axum::{Idempotency, IdempotencyLayer, Policies, idempotent};
///
/// #[idempotent(required, ttl = "7d")]
/// async fn create_order() {}
///
/// #[idempotent(required)]
/// async fn pay() {}
///
/// let policies = Policies::at("/.well-known/idempotency")
///     .endpoint(Method::POST, "/orders", create_order)
///     .endpoint(Method::POST, "/orders/{id}/pay", pay);
/// let app: Router = Router::new()
///     .route("/orders", post(create_order))
///     .route("/orders/{id}/pay", post(pay))
///     .layer(IdempotencyLayer::new(Idempotency::in_memory()).described_by(&policies))
///     .merge(policies.router());
/// ```
///
/// The type of the router's state is inferred where [`router`](Self::router) is merged; `Policies::<Orders>::at(..)` names
/// it. A generic handler is listed as it is mounted: `create::<Repo, _, _>`.
///
/// # The list and the routes
/// An endpoint is listed by its method and its whole route template, with the prefixes of routers it is nested in. A list can
/// differ from the routes, so
/// - [`mount`](Self::mount) lists an endpoint and routes it, in one line;
/// - [`IdempotencyLayer::described_by`](crate::IdempotencyLayer::described_by) logs one warning for each endpoint that is called but not
///   listed, or listed with another policy. For tests, [`undocumented`](Self::undocumented) returns these endpoints.
///
/// A handler without the attribute is no endpoint, and does not compile here.
///
/// # The document
/// `application/json`, with an `ETag`; clients may keep it for five minutes. [`SCHEMA`](Self::SCHEMA) is its JSON Schema. `version` is 1.
/// Names may be added to the document, and no name changes its meaning. `endpoints` is sorted by path and method, and has for each
/// endpoint:
///
/// | name | what |
/// |---|---|
/// | `method`, `path` | the endpoint: the path is a template as in axum and OpenAPI, `/orders/{id}/pay` |
/// | `enforced` | whether the rules hold. `false` in shadow mode: they are on trial, `required` is false, and there are no `refusals` |
/// | `key` | `header` (its name), `required`, `min_length` and `max_length` in characters, and `pattern`, a regular expression for the header's value: the key bare or in quotes |
/// | `ttl` | `seconds` and `duration` (`"24h"`): how long a record lives, from completion |
/// | `fingerprint` | what must be equal on a retry, each with its `part`: `endpoint` (always), `method`, `path`, `query`, `body`, `json` (if there are `pointers`, only these), `header` (with its `name`) |
/// | `scope` | whose key it is, by `kind`: `caller` (by the header `name`, `authorization`, or by `cookie` if there is none), `global`, `header` (with its `name`), `arguments` (what the service finds out about the request); and `path: true` if the same key on another path is another key |
/// | `in_flight` | `action` (`reject` or `wait`), the `status` of the refusal, and for `wait` `seconds` and `duration` |
/// | `mismatch` | the `status` if the key was used for another request |
/// | `record` | the statuses that are recorded, as ranges `from` and `to`; a retry after any other runs again |
/// | `replay` | whether a replay sends `status`, `headers` and `body`; the fixed `replay_status`, if there is one; the `marker`, a header with `name` and `value`; `added_headers`, each `on` ranges of recorded statuses |
/// | `abandoned` | `refuse` or `rerun`: what a retry gets if the service stopped in the middle |
/// | `without_store` | `refuse` or `run`: what a request gets that cannot be checked |
/// | `max_response` | `bytes` of the largest response body that is recorded |
/// | `refusals` | the responses of the runtime itself: `code`, `title`, `status`, `content_type`, and `retry_after` in seconds if waiting helps |
///
/// Refusals are written down as they will be sent. While the endpoint is listed, the policy's `errors` function is called once with an
/// example of each. If it makes several responses from one refusal, say by the reason why a key is invalid, the document has one of them. A
/// `Retry-After` that is a date is left out.
///
/// # What the document does not know
/// - An argument of the type [`IdempotencyKey`](crate::IdempotencyKey) makes the key required, whatever the policy says:
///   declare `required` beside it.
/// - An argument of the type `Tx` of `idem-sqlx` keeps server errors from being recorded if the policy declares no `record`: declare
///   `record = all - server_error` beside it.
/// - Under the scope `header`, a request without that header is treated as under `caller`.
///
/// When an endpoint is listed, its function is polled once to ask for the policy, and ends before any argument is extracted. What another
/// attribute evaluates first, such as the `fields` of `#[tracing::instrument]`, is evaluated then.
///
/// # Browsers
/// A script on another origin sees only headers that CORS exposes. Expose the replay marker, `Link` and `Retry-After`
/// (`Access-Control-Expose-Headers`), and allow the header of the key.
pub struct Policies<S = ()> {
    path: String,
    endpoints: Vec<ListedEndpoint>,
    routes: Router<S>,
    undocumented: Arc<Mutex<BTreeSet<String>>>,
}

/// One endpoint of the list.
#[derive(Clone)]
pub(crate) struct ListedEndpoint {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) policy: &'static Policy,
    pub(crate) rules: DescribedRules,
}

impl<S> Policies<S> {
    /// The JSON Schema (draft 2020-12) of the document.
    pub const SCHEMA: &'static str = include_str!("schema.json");

    /// Makes a list without endpoints. The document will be at `path`, as clients see it.
    ///
    /// # Panics
    /// If `path` does not begin with `/`, or has a parameter, a query, a fragment or a character that no URI has.
    pub fn at(path: &str) -> Self
    where
        S: Clone + Send + Sync + 'static,
    {
        assert!(
            path.starts_with('/') && !path.contains(['{', '}', '?', '#']),
            "the policy document needs a path without parameters, such as `/.well-known/idempotency`"
        );
        // Panics now, and not when the path is first used.
        link_header::describedby(path);
        Self { path: path.to_owned(), endpoints: Vec::new(), routes: Router::new(), undocumented: Arc::default() }
    }

    /// Lists an endpoint that is mounted elsewhere: the method and the whole route template it is served at, and its handler.
    ///
    /// # Panics
    /// If the endpoint is listed already, or the path does not begin with `/`. If another attribute responds first, so that the handler
    /// does not say its policy.
    pub fn endpoint<H, M>(mut self, method: Method, path: &str, handler: H) -> Self
    where
        H: IdempotentHandler<S, M>,
    {
        self.list(method, path, handler);
        self
    }

    /// Lists an endpoint and routes it. [`routes`](Self::routes) has the routes, to be merged into a router that is not nested:
    ///
    /// ```
    /// use axum::{Router, http::Method, routing::get};
    /// use idem_axum::{Idempotency, IdempotencyLayer, Policies, idempotent};
    ///
    /// #[idempotent]
    /// async fn create_order() {}
    ///
    /// let policies = Policies::at("/.well-known/idempotency").mount(Method::POST, "/orders", create_order);
    /// let app: Router = Router::new()
    ///     .route("/orders", get("no order"))
    ///     .merge(policies.routes())
    ///     .layer(IdempotencyLayer::new(Idempotency::in_memory()).described_by(&policies))
    ///     .merge(policies.router());
    /// ```
    ///
    /// # Panics
    /// As [`endpoint`](Self::endpoint), and if axum knows no such method.
    pub fn mount<H, M, T>(mut self, method: Method, path: &str, handler: H) -> Self
    where
        H: IdempotentHandler<S, M> + Handler<T, S>,
        T: 'static,
        S: Clone + Send + Sync + 'static,
    {
        let filter = MethodFilter::try_from(method.clone());
        assert!(filter.is_ok(), "axum mounts nothing for the method {method}");
        self.list(method, path, handler.clone());
        self.routes = self.routes.route(path, on(filter.unwrap_or(MethodFilter::POST), handler));
        self
    }

    /// Returns the routes of the endpoints that [`mount`](Self::mount) listed.
    pub fn routes(&self) -> Router<S> {
        self.routes.clone()
    }

    fn list<H: IdempotentHandler<S, M>, M>(&mut self, method: Method, path: &str, handler: H) {
        assert!(path.starts_with('/'), "the path of an endpoint begins with `/`, and `{path}` does not");
        let listed = self.endpoints.iter().any(|other| other.method == method && other.path == path);
        assert!(!listed, "{method} {path} is listed already");
        let declared = handler.declared();
        assert!(
            declared.is_some(),
            "{method} {path} does not say its policy: is something between it and the attribute?"
        );
        if let Some(policy) = declared {
            self.endpoints.push(ListedEndpoint {
                method,
                path: path.to_owned(),
                policy,
                rules: DescribedRules::of(policy),
            });
            self.endpoints.sort_by(|a, b| (&a.path, a.method.as_str()).cmp(&(&b.path, b.method.as_str())));
        }
    }

    /// Returns the route of the document. Merge it into a router that is not nested.
    pub fn router(&self) -> Router<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        let document = Bytes::from(self.document());
        let tag = tag(&document);
        Router::new().route(&self.path, get(async move |headers: HeaderMap| publish(&headers, document, tag)))
    }

    /// Returns the document, to be written to a file or served in another way.
    #[must_use]
    pub fn document(&self) -> String {
        let document = Document::of(&self.endpoints);
        // Strings and numbers can always be written.
        serde_json::to_string_pretty(&document).unwrap_or_default()
    }

    /// Returns the endpoints that were called so far and are not listed, or are listed with another policy: `"POST /orders"`. They are
    /// those beneath a layer that is [`described_by`](crate::IdempotencyLayer::described_by) these policies. A method that HTTP does not
    /// know is `OTHER`. At most 256 are remembered.
    ///
    /// A test that has called every endpoint can compare the list with the routes:
    ///
    /// ```
    /// # use idem_axum::Policies;
    /// # let policies = Policies::<()>::at("/.well-known/idempotency");
    /// assert!(policies.undocumented().is_empty());
    /// ```
    #[must_use]
    pub fn undocumented(&self) -> Vec<String> {
        self.undocumented.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    #[cfg(feature = "utoipa")]
    pub(super) fn endpoints(&self) -> &[ListedEndpoint] {
        &self.endpoints
    }
}

impl IdempotencyLayer {
    /// Adds `Link: </path>; rel="describedby"` to every refusal, with the path of the policy document. It also logs one warning for each
    /// endpoint beneath the layer that the document does not have or describes wrongly. See [`Policies`].
    ///
    /// A response that the policy's `errors` function made keeps its own `describedby`. Call this when `policies` is
    /// complete: the layer does not know what is listed later. The comparison looks up the route template on each request.
    pub fn described_by<S>(self, policies: &Policies<S>) -> Self {
        let listed = ListedEndpoints::new(&policies.endpoints, Arc::clone(&policies.undocumented));
        let layer = if self.has_link() { self } else { self.with_link(link_header::describedby(&policies.path)) };
        layer.with_check(Arc::new(move |parts, policy| listed.compare(parts, policy)))
    }
}

impl<S> fmt::Debug for Policies<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.endpoints.iter().map(|ListedEndpoint { method, path, .. }| format!("{method} {path}"));
        f.debug_struct("Policies")
            .field("path", &self.path)
            .field("endpoints", &endpoints.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A handler with the attribute `#[idempotent]`, for routers with the state `S`. Only handlers with the attribute implement this trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler with the attribute `#[idempotent]`",
    label = "this handler has no policy to list",
    note = "write `#[idempotent]` above the handler, or leave it out of the list and mount it with `Router::route`"
)]
pub trait IdempotentHandler<S, M> {
    /// Its policy: `None` if another attribute is between.
    #[doc(hidden)]
    fn declared(self) -> Option<&'static Policy>;
}

/// Says that a handler has the attribute. The compiler infers it.
#[derive(Debug)]
pub enum Annotated {}

impl<S, F, A> IdempotentHandler<S, Annotated> for F
where
    F: FnOnce(Call<S>) -> A,
    A: Future<Output = Response>,
{
    fn declared(self) -> Option<&'static Policy> {
        // A generated function returns from a probe the first time it is polled.
        self(Call::probe()).now_or_never().and_then(|response| Call::<S>::declared(&response))
    }
}

/// Of no function. If there were one implementation, the compiler would say which arguments it needs, and not what to write.
#[derive(Debug)]
pub enum NotAnnotated {}

impl<S, F> IdempotentHandler<S, NotAnnotated> for F
where
    F: FnOnce(NotAnnotated) -> NotAnnotated,
{
    fn declared(self) -> Option<&'static Policy> {
        None
    }
}

/// Returns an entity tag: the beginning of the document's hash.
fn tag(document: &[u8]) -> HeaderValue {
    let mut hash = Fingerprint::builder();
    hash.part(b'd', document);
    let digits: String = hash.finish().as_bytes().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::try_from(format!("\"{digits}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The document, unless the client has it.
fn publish(headers: &HeaderMap, document: Bytes, tag: HeaderValue) -> Response {
    let is_known = |known: &HeaderValue| {
        let known = known.to_str().unwrap_or_default();
        known.split(',').any(|known| matches!(known.trim(), "*") || known.trim().trim_start_matches("W/") == tag)
    };
    let known = headers.get_all(header::IF_NONE_MATCH).iter().any(is_known);
    let headers = [(header::ETAG, tag), (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"))];
    if known {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (headers, json, document).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_document_has_another_tag() {
        assert_eq!(tag(b"one"), tag(b"one"));
        assert_ne!(tag(b"one"), tag(b"two"));
        assert_eq!(tag(b"").len(), 18);
    }
}

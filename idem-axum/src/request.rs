//! What is read from a request: its key, its scope, its body, and the fingerprint over them.

use std::fmt::Display;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;

use axum::RequestExt;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, MatchedPath, OriginalUri, Request};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body::Body as _;
use idem_runtime::{Attempt, Endpoint, Fingerprint, FingerprintBuilder, InvalidKey, Key, Scope, TraceParent};
use serde_json::Value;

use crate::json;
use crate::policy::{Part, Policy, Scope as DeclaredScope};

/// The tags of the parts of a fingerprint. Records outlive releases: a tag is never given another meaning.
mod tag {
    pub(super) const METHOD: u8 = b'm';
    pub(super) const TEMPLATE: u8 = b't';
    pub(super) const UNMATCHED: u8 = b'u';
    pub(super) const PATH: u8 = b'p';
    pub(super) const QUERY: u8 = b'q';
    pub(super) const NO_QUERY: u8 = b'Q';
    pub(super) const AUTHORIZATION: u8 = b'a';
    pub(super) const HEADER: u8 = b'h';
    pub(super) const HEADER_VALUE: u8 = b'v';
    pub(super) const BODY: u8 = b'b';
    pub(super) const JSON: u8 = b'j';
    pub(super) const POINTER: u8 = b'o';
    pub(super) const VALUE: u8 = b'x';
    pub(super) const NO_VALUE: u8 = b'X';
}

/// The key of a request: `None` where it has none.
pub(crate) fn key(headers: &HeaderMap, policy: &Policy) -> Result<Option<Key>, InvalidKey> {
    // Looking at every name is cheaper than hashing the wanted one, since requests have few headers.
    let wanted = |(name, _): &(&HeaderName, _)| name.as_str().eq_ignore_ascii_case(policy.header);
    let mut lines = headers.iter().filter(wanted).map(|(_, line)| line);
    let Some(line) = lines.next() else { return Ok(None) };
    // Two lines are refused even if they are equal: a proxy that repeats one line may as well change the other.
    if lines.next().is_some() {
        return Err(InvalidKey::List);
    }
    let key = Key::parse(line.as_bytes())?;
    if key.as_str().len() < policy.min_key {
        return Err(InvalidKey::TooShort { min: policy.min_key });
    }
    Ok(Some(key))
}

/// A scope made from the handler's arguments, owned, so that the body may take the arguments.
#[derive(Debug)]
pub struct ScopeValue(pub(crate) Scope);

/// Evaluates the expressions of `scope`.
pub fn scope(values: &[&dyn Display]) -> ScopeValue {
    ScopeValue(values.iter().fold(Scope::arguments(), |scope, value| scope.with(value.to_string().as_bytes())))
}

/// Whose key it is, as far as the headers tell.
#[derive(Debug)]
pub(crate) enum Owner {
    /// A declared scope.
    Scope(Scope),
    /// The caller with these values of the `Authorization` header, bound through the fingerprint.
    Caller(Vec<HeaderValue>),
}

/// Whose key it is by the policy, from the headers as they arrived.
pub(crate) fn owner(headers: &HeaderMap, policy: &Policy) -> Owner {
    let caller = || Owner::Caller(headers.get_all(header::AUTHORIZATION).iter().cloned().collect());
    match policy.scope {
        // Generated code evaluates the arguments later, and what it finds counts.
        DeclaredScope::Caller | DeclaredScope::Arguments => caller(),
        DeclaredScope::Global => Owner::Scope(Scope::GLOBAL),
        DeclaredScope::Header(name) => {
            let mut values = headers.get_all(name).iter().peekable();
            // Without the header there is nobody whose key it could be, but the caller.
            if values.peek().is_none() {
                return caller();
            }
            let scope = Scope::header(&name.to_ascii_lowercase());
            Owner::Scope(values.fold(scope, |scope, value| scope.with(value.as_bytes())))
        }
    }
}

/// Where a request came from, for operators. Small, since a future that holds it is moved about.
pub(crate) struct Source {
    method: Method,
    template: Option<MatchedPath>,
    trace: Option<Box<TraceParent>>,
}

impl Source {
    pub(crate) fn of(parts: &Parts) -> Self {
        let template = parts.extensions.get::<MatchedPath>().cloned();
        Self { method: parts.method.clone(), template, trace: trace(&parts.headers).map(Box::new) }
    }

    /// The endpoint. It never names the path itself, which may say who asked for what; so a fallback, which has
    /// no template, has a star.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(method(&self.method), self.template.as_ref().map_or("*", MatchedPath::as_str))
    }

    /// The attempt of this request.
    pub(crate) fn describe(self, attempt: Attempt) -> Attempt {
        let endpoint = self.endpoint();
        attempt.at(endpoint).within(self.trace.map(|trace| *trace))
    }
}

/// The method, or one name for all that a client may make up: there are as many endpoints as routes, whatever clients send.
pub(crate) fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::TRACE,
        Method::CONNECT,
    ];
    if known.contains(method) { method.as_str() } else { "OTHER" }
}

/// The trace that the request belongs to, by its `traceparent` header. One that is malformed is disregarded, as is one that
/// comes twice.
fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut lines = headers.iter().filter(|(name, _)| name.as_str() == "traceparent").map(|(_, line)| line);
    let line = lines.next()?;
    TraceParent::parse(line.as_bytes()).filter(|_| lines.next().is_none())
}

/// A fingerprint that lacks only what is known later: the body, and whether a scope made from the arguments stands for the
/// caller.
#[derive(Debug)]
pub(crate) struct Unfinished {
    builder: FingerprintBuilder,
}

impl Unfinished {
    /// Everything but the body. Taken before the first extractor runs, since an extractor may change the parts.
    pub(crate) fn new(parts: &Parts, policy: &Policy) -> Self {
        let mut builder = Fingerprint::builder();
        // The endpoint always takes part: a key used on one endpoint is refused on another.
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri);
        builder.part(tag::METHOD, parts.method.as_str().as_bytes());
        match parts.extensions.get::<MatchedPath>() {
            Some(template) => builder.part(tag::TEMPLATE, template.as_str().as_bytes()),
            // A fallback has no template.
            None => builder.part(tag::UNMATCHED, uri.path().as_bytes()),
        }
        // In the order of this list, whatever the order of the terms was.
        let declares = |wanted: Part| policy.fingerprint.contains(&wanted);
        if declares(Part::Path) {
            builder.part(tag::PATH, uri.path().as_bytes());
        }
        if declares(Part::Query) {
            query(&mut builder, uri);
        }
        declared_headers(&mut builder, &parts.headers, policy);
        Self { builder }
    }

    /// Binds the caller, where no scope does, by the values of its `Authorization` header.
    pub(crate) fn bind_caller(&mut self, authorization: &[HeaderValue]) {
        for value in authorization {
            self.builder.part(tag::AUTHORIZATION, value.as_bytes());
        }
    }

    /// Adds the body.
    pub(crate) fn body(&mut self, body: &[u8], policy: &Policy) {
        let declares = |wanted: Part| policy.fingerprint.contains(&wanted);
        if declares(Part::Body) {
            self.builder.part(tag::BODY, body);
        }
        let whole = declares(Part::Json);
        if !whole && !policy.fingerprint.iter().any(|part| !part.pointers().is_empty()) {
            return;
        }
        let mut pointers: Vec<&str> = policy.fingerprint.iter().flat_map(Part::pointers).copied().collect();
        pointers.sort_unstable();
        pointers.dedup();
        let Some(value) = json::parse(body) else {
            self.builder.part(tag::BODY, body);
            return;
        };
        if whole {
            self.json(tag::JSON, &value, body);
        }
        for pointer in pointers {
            self.builder.part(tag::POINTER, pointer.as_bytes());
            match value.pointer(pointer) {
                Some(value) => self.json(tag::VALUE, value, body),
                None => self.builder.part(tag::NO_VALUE, &[]),
            }
        }
    }

    /// Adds a value in its canonical form, or the whole body where it has none.
    fn json(&mut self, tag: u8, value: &Value, body: &[u8]) {
        match json::canonical(value) {
            Some(canonical) => self.builder.part(tag, &canonical),
            None => self.builder.part(tag::BODY, body),
        }
    }

    pub(crate) fn finish(self) -> Fingerprint {
        self.builder.finish()
    }
}

fn query(builder: &mut FingerprintBuilder, uri: &Uri) {
    match uri.query() {
        Some(query) => builder.part(tag::QUERY, query.as_bytes()),
        None => builder.part(tag::NO_QUERY, &[]),
    }
}

fn declared_headers(builder: &mut FingerprintBuilder, headers: &HeaderMap, policy: &Policy) {
    let name_of = |part: &Part| if let Part::Header(name) = part { Some(name.to_ascii_lowercase()) } else { None };
    if !policy.fingerprint.iter().any(|part| matches!(part, Part::Header(_))) {
        return;
    }
    let mut names: Vec<String> = policy.fingerprint.iter().filter_map(name_of).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        builder.part(tag::HEADER, name.as_bytes());
        for value in headers.get_all(&name) {
            builder.part(tag::HEADER_VALUE, value.as_bytes());
        }
    }
}

/// Reads the whole body, within the limit that holds for the extractor it is read for.
///
/// # Errors
/// axum's own rejection: 413 over the limit, 400 where the body breaks off. Nothing has been claimed.
pub(crate) async fn buffer(parts: &mut Parts, body: Body) -> Result<Bytes, Response> {
    // axum knows the limit, and finds it in the extensions.
    let mut carrier = Request::new(body);
    mem::swap(carrier.extensions_mut(), &mut parts.extensions);
    let mut carrier = carrier.with_limited_body();
    mem::swap(carrier.extensions_mut(), &mut parts.extensions);
    let mut body = carrier.into_body();
    let mut bytes = Bytes::new();
    let mut more = BytesMut::new();
    loop {
        let frame = match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => break,
            Some(Ok(frame)) => frame,
            // An extractor that fails in the same way says it in axum's words.
            Some(Err(error)) => return Err(rejection(error).await),
        };
        // Trailers are no part of the body.
        let Ok(data) = frame.into_data() else { continue };
        if bytes.is_empty() && more.is_empty() {
            bytes = data;
        } else {
            more.extend_from_slice(&mem::take(&mut bytes));
            more.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if more.is_empty() { bytes } else { more.freeze() })
}

/// What axum answers when reading a body fails with `error`. It looks for the reason within two wrappings, which the stream
/// makes anew; the error of a limit that a layer has set comes in more of them.
async fn rejection(error: axum::Error) -> Response {
    let mut inner = error.into_inner();
    let reason = loop {
        match inner.downcast::<axum::Error>() {
            Ok(wrapped) => inner = wrapped.into_inner(),
            Err(reason) => break reason,
        }
    };
    let failing = Body::from_stream(stream::iter([Err::<Bytes, _>(reason)]));
    let mut request = Request::new(failing);
    DefaultBodyLimit::disable().apply(&mut request);
    match Bytes::from_request(request, &()).await {
        Err(rejection) => rejection.into_response(),
        Ok(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

//! What is read from a request: its key, its owner, its body, and the fingerprint over them.
//!
//! `key` reads the header or the value of `key = ..`. `owner` says whose key it is: the caller, or the declared `scope`. `body` reads the
//! body for the fingerprint, and `unread` discards the rest of one that was not read. `fingerprint` joins the declared parts, `json`,
//! `header` and the `target` among them.

use axum::extract::MatchedPath;
use http::request::Parts;
use http::{HeaderMap, Method};
use idem_runtime::{Attempt, Endpoint, TraceParent};

pub(crate) mod body;
mod fingerprint;
mod header;
mod json;
mod key;
mod owner;
mod target;
mod unread;

pub(crate) use fingerprint::FingerprintInput;
pub(crate) use key::key;
pub use key::{KeyExpression, KeyOfOption, KeyOfText, KeyText};
pub(crate) use owner::{Caller, KeyOwner};
pub use owner::{ScopePart, ScopeValue, scope};
pub(crate) use target::rewritten_path;
pub(crate) use unread::UnreadBody;

/// What operators want to know of a request. Small, since futures that hold it are moved.
pub(crate) struct RequestInfo {
    method: Method,
    template: Option<MatchedPath>,
    trace: Option<Box<TraceParent>>,
}

impl RequestInfo {
    pub(crate) fn of(parts: &Parts) -> Self {
        Self { trace: trace(&parts.headers).map(Box::new), ..Self::without_trace(parts) }
    }

    /// As [`of`](Self::of), of a request that leaves no record.
    pub(crate) fn without_trace(parts: &Parts) -> Self {
        let template = parts.extensions.get::<MatchedPath>().cloned();
        Self { method: parts.method.clone(), template, trace: None }
    }

    /// Returns the endpoint. It never contains the path itself, which may have personal data. A fallback has no template, so it
    /// has a star.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(method(&self.method), self.template.as_ref().map_or("*", MatchedPath::as_str))
    }

    /// Adds the endpoint and the trace to an attempt.
    pub(crate) fn describe(self, attempt: Attempt) -> Attempt {
        let endpoint = self.endpoint();
        attempt.at(endpoint).within(self.trace.map(|trace| *trace))
    }
}

/// Returns the name of a method, and one name for all methods that HTTP does not define: a client can invent any number.
pub(crate) fn method(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE" | "CONNECT") => known,
        _ => "OTHER",
    }
}

/// Returns the trace that the request belongs to, from its `traceparent` header. A header that is malformed or sent twice is
/// disregarded.
fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut lines = headers.iter().filter(|(name, _)| name.as_str() == "traceparent").map(|(_, line)| line);
    let line = lines.next()?;
    TraceParent::parse(line.as_bytes()).filter(|_| lines.next().is_none())
}

//! What a row of a table measures, and the requests that it sends.

use std::fmt;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use bytes::Bytes;

use crate::app::PATH;
use crate::subject::{KeyedBy, Subject};

/// The first key of new requests; those below were used before.
const NEW: u64 = 256;

/// The header that carries the key.
pub const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// A header as long as `Idempotency-Key` that nothing reads: a request without a key carries it in its place, so that every
/// row is charged for the same number of headers.
pub const OTHER_HEADER: HeaderName = HeaderName::from_static("x-request-label");

/// What happens to each request of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No protection is mounted; the key is a header like any other.
    Bare,
    /// The protection is mounted, but the request has no key.
    Unprotected,
    /// A new key: the handler runs, and its response is recorded.
    First,
    /// A key whose record is there.
    Replay,
    /// A key whose handler is still running.
    InFlight,
    /// A key whose record is there, with another body of the same length.
    Mismatch,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::Bare, Self::Unprotected, Self::First, Self::Replay, Self::InFlight, Self::Mismatch];

    /// The name in files and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Unprotected => "unprotected",
            Self::First => "first",
            Self::Replay => "replay",
            Self::InFlight => "refusal-in-flight",
            Self::Mismatch => "refusal-mismatch",
        }
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether each request starts the handler.
    pub const fn executes(self) -> bool {
        matches!(self, Self::Bare | Self::Unprotected | Self::First)
    }

    /// Whether each key must have been used before.
    pub const fn needs_records(self) -> bool {
        matches!(self, Self::Replay | Self::Mismatch)
    }

    /// The key of the request with this number, if `used` keys were used before.
    const fn key(self, number: u64, used: u64) -> u64 {
        match self {
            Self::Bare | Self::Unprotected | Self::First => NEW + number,
            Self::Replay | Self::Mismatch => number % used,
            Self::InFlight => 0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The bodies of requests of one size.
#[derive(Clone, Debug)]
pub struct Bodies {
    size: usize,
    usual: Bytes,
    other: Bytes,
    /// How many keys the replays and the mismatches go round: fewer for large bodies, which take long to send.
    pub used_keys: u64,
}

impl Bodies {
    /// Bodies of exactly `size` bytes, at least 30.
    pub fn new(size: usize) -> Self {
        let used_keys = match size {
            size if size >= 1 << 20 => 4,
            size if size >= 1 << 16 => 16,
            _ => NEW,
        };
        Self { size, usual: body(size, 0, 12), other: body(size, 0, 34), used_keys }
    }

    /// The body of the request with this number. Bodies differ only in mismatches, and if the body itself is the key.
    pub fn of(&self, subject: &Subject, kind: Kind, number: u64) -> Bytes {
        match (subject.keyed_by, kind) {
            (KeyedBy::Body, _) => body(self.size, kind.key(number, self.used_keys), 12),
            (KeyedBy::Header, Kind::Mismatch) => self.other.clone(),
            (KeyedBy::Header, _) => self.usual.clone(),
        }
    }
}

fn body(size: usize, number: u64, quantity: u32) -> Bytes {
    let mut body = format!(r#"{{"quantity":{quantity},"item":"{number:05x}"#);
    let padding = size.saturating_sub(body.len() + 2);
    body.push_str(&"x".repeat(padding));
    body.push_str(r#""}"#);
    Bytes::from(body)
}

/// The key with this number, 36 characters like a UUID.
pub fn key(number: u64) -> String {
    format!("{number:08x}-5a2b-4c1d-8e3f-{:012x}", number.wrapping_mul(0x9e37_79b9_7f4a) & 0xffff_ffff_ffff)
}

/// The headers of a request, the same in process and over HTTP.
pub fn headers(subject: &Subject, kind: Kind, number: u64, bodies: &Bodies) -> Vec<(HeaderName, HeaderValue)> {
    let name = if kind == Kind::Unprotected { OTHER_HEADER } else { KEY_HEADER };
    let mut headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let number = kind.key(number, bodies.used_keys);
    headers.extend(HeaderValue::try_from(key(number)).ok().map(|key| (name, key)));
    headers.extend(subject.also.map(|also| also(number)));
    headers
}

/// The request with this number. A body is shared if it can be, so that making it costs nothing.
pub fn request(subject: &Subject, kind: Kind, number: u64, bodies: &Bodies) -> Request<Body> {
    let mut request = Request::new(Body::from(bodies.of(subject, kind, number)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(PATH);
    request.headers_mut().extend(headers(subject, kind, number, bodies));
    request
}

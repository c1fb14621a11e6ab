//! What a row of a table measures, and how its answers are told from those of another row.

use std::fmt;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;

use crate::app::PATH;

/// What happens to each request of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The body runs without any protection mounted, and the key is a header like any other.
    Bare,
    /// The protection is mounted, but the request has no key.
    Unprotected,
    /// A new key: the body runs, and its answer is recorded.
    First,
    /// A key whose record is there.
    Replay,
    /// A key whose body is still running.
    InFlight,
    /// A key whose record is there, with another body of the same length.
    Mismatch,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::Bare, Self::Unprotected, Self::First, Self::Replay, Self::InFlight, Self::Mismatch];

    /// The name in tables and in files.
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

    /// Whether each request starts the body.
    pub const fn executes(self) -> bool {
        matches!(self, Self::Bare | Self::Unprotected | Self::First)
    }

    /// The status of every answer where nothing else was declared.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Bare | Self::Unprotected | Self::First | Self::Replay => StatusCode::CREATED,
            Self::InFlight => StatusCode::CONFLICT,
            Self::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The bodies of requests of one size: the usual one, and another of the same length for mismatches.
#[derive(Clone, Debug)]
pub struct Bodies {
    /// Sent by every row.
    pub usual: Bytes,
    /// Sent with the key of the usual one, to be refused.
    pub other: Bytes,
}

impl Bodies {
    /// The smallest size there is: an order of an empty item.
    pub const SMALLEST: usize = r#"{"item":"","quantity":12}"#.len();

    /// Bodies of exactly `size` bytes.
    pub fn new(size: usize) -> Self {
        let body = |quantity: u32| {
            let item = "x".repeat(size.saturating_sub(Self::SMALLEST));
            Bytes::from(format!(r#"{{"item":"{item}","quantity":{quantity}}}"#))
        };
        Self { usual: body(12), other: body(34) }
    }
}

/// The key with this number, 36 characters like a UUID.
pub fn key(number: u64) -> String {
    format!("{number:08x}-5a2b-4c1d-8e3f-{:012x}", number.wrapping_mul(0x9e37_79b9_7f4a) & 0xffff_ffff_ffff)
}

/// A header as long as `Idempotency-Key` that nobody reads: a request without a key carries it in its place, so that every
/// row is charged for the same number of headers.
pub const OTHER_HEADER: &str = "x-request-label";

/// One request. The body is shared, so that making it costs the same whatever its size is.
pub fn request(header: &str, key: u64, body: &Bytes) -> Request<Body> {
    let mut request = Request::new(Body::from(body.clone()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(PATH);
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    // A key is hexadecimal digits, and the header names are constants of this crate.
    if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(header), http::HeaderValue::try_from(self::key(key))) {
        headers.insert(name, value);
    }
    request
}

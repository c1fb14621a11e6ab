//! What is compared: something around the handler, how its requests look, and how its responses are recognized.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, StatusCode};

use crate::app::{self, Shop};
use crate::row::Kind;
use crate::{handwritten, parts};

/// Something that can be put around the handler.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The name in tables and on command lines.
    pub name: &'static str,
    /// Makes the router, within a tokio runtime.
    pub router: fn(&Shop) -> Router,
    /// What tells two requests apart.
    pub keyed_by: KeyedBy,
    /// A header that every request needs, such as a cookie, by the number of the request.
    pub also: Option<fn(u64) -> (HeaderName, HeaderValue)>,
    /// The header of a replay, if there is one.
    pub marker: Option<&'static str>,
    /// What a request gets whose key is in flight; `None` if it runs the handler again.
    pub in_flight: Option<StatusCode>,
    /// What a request gets whose key was used with another body; `None` if it is not refused.
    pub mismatch: Option<StatusCode>,
}

/// What tells two requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyedBy {
    /// The header `Idempotency-Key`.
    Header,
    /// A hash of the request, so each needs its own body.
    Body,
}

/// The handler alone.
pub const BARE: Subject = Subject {
    name: "bare",
    router: app::bare,
    keyed_by: KeyedBy::Header,
    also: None,
    marker: None,
    in_flight: None,
    mismatch: None,
};

/// The handler with `#[idempotent]`.
pub const IDEM: Subject = Subject {
    name: "idem",
    router: app::idem,
    marker: Some("idempotent-replayed"),
    in_flight: Some(StatusCode::CONFLICT),
    mismatch: Some(StatusCode::UNPROCESSABLE_ENTITY),
    ..BARE
};

/// The parts of `idem`, put together by hand: a floor.
pub const PARTS: Subject = Subject { name: "its parts by hand", router: parts::router, ..IDEM };

/// The handler under a few lines of middleware, as they are written in an afternoon: a floor, and no protection.
pub const HANDWRITTEN: Subject =
    Subject { name: "60 lines by hand", router: handwritten::router, in_flight: None, mismatch: None, ..IDEM };

impl Subject {
    /// The rows it can be measured in. If a promise is not kept, there is no response to time.
    pub fn kinds(&self) -> Vec<Kind> {
        if self.name == BARE.name {
            return vec![Kind::Bare];
        }
        Kind::ALL.into_iter().filter(|kind| *kind != Kind::Bare && self.status(*kind).is_some()).collect()
    }

    /// The status of every response in a row; `None` if the subject has no such row.
    pub fn status(&self, kind: Kind) -> Option<StatusCode> {
        match kind {
            Kind::Bare | Kind::First | Kind::Replay => Some(StatusCode::CREATED),
            Kind::Unprotected => (self.keyed_by == KeyedBy::Header).then_some(StatusCode::CREATED),
            Kind::InFlight => self.in_flight,
            Kind::Mismatch => self.mismatch,
        }
    }

    /// Whether a failure is ours, and ends the run.
    pub fn is_ours(&self) -> bool {
        self.name == BARE.name || self.name == IDEM.name
    }

    /// Whether the responses of a row carry the marker.
    pub fn marks(&self, kind: Kind) -> bool {
        kind == Kind::Replay && self.marker.is_some()
    }
}

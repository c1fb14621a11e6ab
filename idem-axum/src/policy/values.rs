//! The values of a policy's options, and what is checked of them at compile time.

use std::time::Duration;

use crate::response::NEVER;
use crate::statuses::Statuses;

/// A part of a request that must be equal on a retry.
///
/// ```
/// use idem_axum::{Part, Policy};
///
/// /// As `fingerprint = method + path + json("/account", "/amount") + header("X-Api-Version")`.
/// const TRANSFERS: Policy = Policy::DEFAULT.fingerprint(&[
///     Part::Method,
///     Part::Path,
///     Part::JsonPointers(&["/account", "/amount"]),
///     Part::Header("X-Api-Version"),
/// ]);
/// ```
///
/// [Choosing a fingerprint](crate::guide::fingerprints) says which parts to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The method.
    Method,
    /// The path, as it was sent.
    Path,
    /// The query, as it was sent.
    Query,
    /// The body, byte for byte.
    Body,
    /// The body as JSON (RFC 8785): white space and the order of names do not count. A body that is not I-JSON (RFC 7493),
    /// say with a name twice, an integer from 2^53 on or a fraction of more than 15 digits, is compared byte for byte.
    Json,
    /// The values at these JSON pointers (RFC 6901), and nothing else of the body. A value that is missing differs from
    /// every value, `null` included. Without a pointer it is a compile error.
    JsonPointers(&'static [&'static str]),
    /// All values of this header, in order.
    Header(&'static str),
}

impl Part {
    pub(crate) fn pointers(&self) -> &'static [&'static str] {
        if let Self::JsonPointers(pointers) = self { pointers } else { &[] }
    }
}

/// Whose key it is.
///
/// ```
/// use idem_axum::{Policy, Scope};
///
/// /// As `scope = header("X-Tenant")`. A scope made from the arguments is declared at the endpoint.
/// const PER_TENANT: Policy = Policy::DEFAULT.scope(Scope::Header("X-Tenant"));
/// ```
///
/// [Scopes, and tokens that rotate](crate::guide::scopes) says which one to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The caller's: the `Authorization` header takes part in the fingerprint, so that another caller who guesses the key
    /// is refused.
    Caller,
    /// Everybody's: whoever knows the key and repeats the request gets the record.
    Global,
    /// That of the values of this header. Name one that your authentication checks. A request without it is treated as
    /// under [`Scope::Caller`].
    Header(&'static str),
    /// That of an expression over the handler's arguments. `scope = user.id` of the attribute says it; a policy alone knows
    /// no arguments, and cannot.
    Arguments,
}

/// What a request gets whose key is in flight with the same fingerprint.
///
/// ```
/// use std::time::Duration;
/// use idem_axum::{InFlight, Policy};
///
/// /// As `in_flight = reject(423)`.
/// const LOCKED: Policy = Policy::DEFAULT.in_flight(InFlight::reject(423));
/// /// As `in_flight = wait("5s")`.
/// const PATIENT: Policy = Policy::DEFAULT.in_flight(InFlight::wait(Duration::from_secs(5)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    pub(crate) status: u16,
    pub(crate) wait: Option<Duration>,
}

impl InFlight {
    /// A refusal with this status, 400 to 599, at once.
    ///
    /// # Panics
    /// If the status is none of a refusal.
    #[must_use]
    pub const fn reject(status: u16) -> Self {
        assert_refusal_status(status);
        Self { status, wait: None }
    }

    /// The recorded answer, if it is there within `most`; then a refusal with 409.
    ///
    /// # Panics
    /// If `most` is zero.
    #[must_use]
    pub const fn wait(most: Duration) -> Self {
        assert!(!most.is_zero(), "`wait` must be longer than zero; `reject` does not wait");
        Self { status: 409, wait: Some(most) }
    }

    /// The status of the refusal.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.status
    }
}

/// What of a response is given back.
///
/// ```
/// use idem_axum::{Policy, Replay};
///
/// /// As `replay = status + body`. What is left out never reaches the store.
/// const WITHOUT_HEADERS: Policy = Policy::DEFAULT.replay(Replay::STATUS.and(Replay::BODY));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    pub(crate) status: bool,
    pub(crate) headers: bool,
    pub(crate) body: bool,
}

impl Replay {
    const NONE: Self = Self { status: false, headers: false, body: false };
    /// The status. Without it a replay is 200, or what `replay_status` says.
    pub const STATUS: Self = Self { status: true, ..Self::NONE };
    /// The headers, but for those that are never replayed.
    pub const HEADERS: Self = Self { headers: true, ..Self::NONE };
    /// The body, with its `Content-Type` and `Content-Encoding`, without which it has no meaning.
    pub const BODY: Self = Self { body: true, ..Self::NONE };
    /// All three.
    pub const ALL: Self = Self::STATUS.and(Self::HEADERS).and(Self::BODY);

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            status: self.status || other.status,
            headers: self.headers || other.headers,
            body: self.body || other.body,
        }
    }
}

/// A header that is added to replays.
///
/// ```
/// use idem_axum::{AddedHeader, Policy, Statuses};
///
/// /// Tells the client that another retry of a recorded failure would get the same.
/// const POLICY: Policy =
///     Policy::DEFAULT.replay_with(&[AddedHeader::new("X-Should-Retry", "false").on(Statuses::SERVER_ERROR)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedHeader {
    pub(crate) name: &'static str,
    pub(crate) value: &'static str,
    pub(crate) on: Statuses,
}

impl AddedHeader {
    /// A header for every replay.
    ///
    /// # Panics
    /// If the name is not a token or one that is never replayed, or the value not visible ASCII and spaces.
    #[must_use]
    pub const fn new(name: &'static str, value: &'static str) -> Self {
        assert_added_header(name);
        let bytes = value.as_bytes();
        let mut index = 0;
        while index < bytes.len() {
            assert!(bytes[index] >= b' ' && bytes[index] <= b'~', "a header value has only visible ASCII and spaces");
            index += 1;
        }
        Self { name, value, on: Statuses::ALL }
    }

    /// Only for replays whose recorded status is among these.
    #[must_use]
    pub const fn on(mut self, statuses: Statuses) -> Self {
        self.on = statuses;
        self
    }
}

pub(super) const fn assert_refusal_status(status: u16) {
    assert!(status >= 400 && status <= 599, "the status of a refusal is 400 to 599");
}

/// What is never replayed cannot be added either: a forged framing header would desynchronise the connection.
pub(super) const fn assert_added_header(name: &str) {
    assert_header_name(name);
    let mut index = 0;
    while index < NEVER.len() {
        assert!(!is_same(name.as_bytes(), NEVER[index].as_bytes()), "this header is never sent with a replay");
        index += 1;
    }
}

const fn is_same(name: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < name.len() && index < other.len() && name[index].eq_ignore_ascii_case(&other[index]) {
        index += 1;
    }
    index == name.len() && index == other.len()
}

/// The characters of a header name: `token`, RFC 9110, section 5.6.2.
pub(super) const fn assert_header_name(name: &str) {
    let bytes = name.as_bytes();
    assert!(!bytes.is_empty(), "a header name is not empty");
    let mut index = 0;
    while index < bytes.len() {
        let token = bytes[index].is_ascii_alphanumeric()
            || matches!(
                bytes[index],
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        assert!(token, "a header name has only letters, digits and !#$%&'*+-.^_`|~");
        index += 1;
    }
}

//! The values of a policy's options, and what is checked of them at compile time.

use std::time::Duration;

use idem_runtime::{PolicyTag, Scope as KeyScope, WhenInFlight};

use super::statuses::Statuses;
use super::validate::{self, require};

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
    /// The method. It always takes part, so this adds nothing.
    Method,
    /// The path, as it was sent, and as the handler sees it.
    Path,
    /// The query, as it was sent, and as the handler sees it.
    Query,
    /// The body, byte for byte.
    Body,
    /// The body as JSON (RFC 8785): white space and the order of names do not count. A body that is not I-JSON (RFC 7493),
    /// say with a name twice, an integer from 2^53 on or a fraction of more than 15 digits, is compared byte for byte.
    Json,
    /// The values at these JSON pointers (RFC 6901), and nothing else of the body. A value that is missing differs from
    /// every value, `null` included. Each pointer is empty, for the whole body, or starts with `/`.
    JsonPointers(&'static [&'static str]),
    /// All values of this header, in order. `Host` means the authority of the request, in lower case: the one of the request
    /// target, as over HTTP/2, or else that of the `Host` header (RFC 9112, section 3.2.2).
    Header(&'static str),
}

impl Part {
    /// Returns a hash of this part for the policy's tag. The order of pointers does not count.
    pub(super) const fn hash(&self) -> u64 {
        let tag = match self {
            Self::Method => PolicyTag::NONE.with(b"method"),
            Self::Path => PolicyTag::NONE.with(b"path"),
            Self::Query => PolicyTag::NONE.with(b"query"),
            Self::Body => PolicyTag::NONE.with(b"body"),
            Self::Json => PolicyTag::NONE.with(b"json"),
            Self::JsonPointers(pointers) => {
                let mut hash = 0;
                let mut index = 0;
                while index < pointers.len() {
                    hash ^= number(PolicyTag::NONE.with(b"pointer").with(pointers[index].as_bytes()));
                    index += 1;
                }
                return hash;
            }
            Self::Header(name) => with_name(PolicyTag::NONE.with(b"header"), name),
        };
        number(tag)
    }

    /// Asserts that the parts are sound.
    pub(super) const fn require_all(parts: &[Self]) {
        assert!(!parts.is_empty(), "{}", validate::EMPTY_FINGERPRINT);
        let mut index = 0;
        while index < parts.len() {
            match parts[index] {
                Self::Header(name) => require(validate::header_name(name)),
                Self::JsonPointers(pointers) => {
                    assert!(!pointers.is_empty(), "{}", validate::NO_POINTERS);
                    let mut pointer = 0;
                    while pointer < pointers.len() {
                        require(validate::json_pointer(pointers[pointer]));
                        pointer += 1;
                    }
                }
                _ => {}
            }
            let mut earlier = 0;
            while earlier < index {
                assert!(!parts[earlier].overlaps(&parts[index]), "{}", validate::REPEATED_PART);
                earlier += 1;
            }
            if let Self::JsonPointers(pointers) = parts[index] {
                assert!(!has_repeated(pointers), "{}", validate::REPEATED_PART);
            }
            index += 1;
        }
    }

    /// Returns whether a term is in both.
    const fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Method, Self::Method)
            | (Self::Path, Self::Path)
            | (Self::Query, Self::Query)
            | (Self::Body, Self::Body)
            | (Self::Json, Self::Json) => true,
            (Self::Header(name), Self::Header(other)) => validate::is_same_name(name, other),
            (Self::JsonPointers(pointers), Self::JsonPointers(others)) => {
                let mut index = 0;
                while index < pointers.len() {
                    let mut other = 0;
                    while other < others.len() {
                        if validate::is_same(pointers[index], others[other]) {
                            return true;
                        }
                        other += 1;
                    }
                    index += 1;
                }
                false
            }
            _ => false,
        }
    }

    pub(crate) fn pointers(&self) -> &'static [&'static str] {
        if let Self::JsonPointers(pointers) = self { pointers } else { &[] }
    }
}

const fn has_repeated(pointers: &[&str]) -> bool {
    let mut index = 0;
    while index < pointers.len() {
        let mut earlier = 0;
        while earlier < index {
            if validate::is_same(pointers[earlier], pointers[index]) {
                return true;
            }
            earlier += 1;
        }
        index += 1;
    }
    false
}

/// Adds a header name to a tag, in lower case.
pub(super) const fn with_name(mut tag: PolicyTag, name: &str) -> PolicyTag {
    let bytes = name.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        tag = tag.with(&[bytes[index].to_ascii_lowercase()]);
        index += 1;
    }
    tag
}

const fn number(tag: PolicyTag) -> u64 {
    u64::from_le_bytes(tag.to_bytes())
}

/// Whose key it is, as a policy declares it: the rule by which each request gets its [`KeyScope`].
///
/// ```
/// use idem_axum::{Policy, Scope};
///
/// /// As `scope = header("X-Tenant")`. A scope made from the arguments is declared at the endpoint.
/// const PER_TENANT: Policy = Policy::DEFAULT.scope(Scope::Header("X-Tenant"));
/// /// As `scope = (global, path)`.
/// const PER_PATH: Policy = Policy::DEFAULT.scope(Scope::GlobalAndPath);
/// ```
///
/// With the path, the method and the path *as sent* are part of what the store finds a key by: the same key on another path is
/// an independent one. The query is not part of it.
///
/// [Scopes, and tokens that rotate](crate::guide::scopes) says which one to take.
///
/// # For operators
///
/// [`inspect`](crate::Idempotency::inspect), [`forget`](crate::Idempotency::forget) and
/// [`settle`](crate::Idempotency::settle) take the scope of one key, with its values. [`Scope::GLOBAL`],
/// [`Scope::arguments`] and [`Scope::header`] make it:
///
/// | declared in the attribute | in a policy | what to pass |
/// |---|---|---|
/// | nothing | [`Scope::Caller`] | `Scope::GLOBAL`: the caller is part of the fingerprint |
/// | `global` | [`Scope::Global`] | `Scope::GLOBAL` |
/// | `header("X-Tenant")` | [`Scope::Header`] | `Scope::header("X-Tenant").with(b"acme")`, with one `with` for each line of the header in order; `Scope::GLOBAL` for a request without the header |
/// | `header("Host")` | `Scope::Header("Host")` | `Scope::header("Host").with(b"api.example.com")`: the authority in lower case, with the port if one was sent |
/// | `user.id` | | `Scope::arguments().with(b"7")` |
/// | `(user.tenant, user.id)` | | `Scope::arguments().with(b"acme").with(b"7")`: the values as their `Display` writes them |
/// | `path` | [`Scope::Path`] | `Scope::GLOBAL.with_path("POST", "/orders/7")` |
/// | `(global, path)` | [`Scope::GlobalAndPath`] | `Scope::GLOBAL.with_path("POST", "/orders/7")` |
/// | `(header("X-Tenant"), path)` | [`Scope::HeaderAndPath`] | `Scope::header("X-Tenant").with(b"acme").with_path("POST", "/orders/7")` |
/// | `(user.id, path)` | | `Scope::arguments().with(b"7").with_path("POST", "/orders/7")` |
///
/// ```
/// use idem_axum::{Idempotency, Key, Scope};
///
/// # async fn example(idempotency: Idempotency, key: Key) -> Result<(), Box<dyn std::error::Error>> {
/// // The endpoint has `scope = (user.id, path)`.
/// let scope = Scope::arguments().with(b"7").with_path("POST", "/orders/7/cancel");
/// if let Some(report) = idempotency.inspect(&scope, &key).await? {
///     println!("{}", report.status());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// The caller's: the `Authorization` header takes part in the fingerprint, or `Cookie` if there is no `Authorization`, so
    /// that another caller who guesses the key is refused.
    Caller,
    /// Everyone's: each caller that knows the key and repeats the request gets the record.
    Global,
    /// The path's, and the caller is bound as under [`Scope::Caller`].
    Path,
    /// The path's, and everyone's: no caller is bound.
    GlobalAndPath,
    /// That of the values of this header. Name one that your authentication checks. A request without it is treated as
    /// under [`Scope::Caller`]. `Host` means the authority of the request.
    Header(&'static str),
    /// That of the values of this header, and the path's.
    HeaderAndPath(&'static str),
    /// That of an expression over the handler's arguments, as in `scope = user.id` of the attribute. A policy alone does not know
    /// the arguments, and cannot say it.
    Arguments,
    /// The same, and the path's.
    ArgumentsAndPath,
}

/// To what a scope binds the key, beside the path.
#[derive(Clone, Copy)]
pub(crate) enum Binding {
    /// To the caller, by `Authorization`, or by `Cookie` if there is no `Authorization`.
    Caller,
    Nothing,
    /// To the values of this header. A request without it is bound by its caller.
    Header(&'static str),
    Arguments,
}

impl Scope {
    /// The scope to pass for a key that all callers share. See [the table](Self#for-operators).
    pub const GLOBAL: KeyScope = KeyScope::GLOBAL;

    /// Returns the scope to pass for a key whose scope is an expression over arguments, without values yet. See
    /// [the table](Self#for-operators).
    #[must_use]
    pub fn arguments() -> KeyScope {
        KeyScope::arguments()
    }

    /// Returns the scope to pass for a key whose scope is a header, without values yet. See [the table](Self#for-operators).
    #[must_use]
    pub fn header(name: &str) -> KeyScope {
        KeyScope::header(name)
    }

    /// Returns to what the key is bound, beside the path.
    pub(crate) const fn binding(self) -> Binding {
        match self {
            Self::Caller | Self::Path => Binding::Caller,
            Self::Global | Self::GlobalAndPath => Binding::Nothing,
            Self::Header(name) | Self::HeaderAndPath(name) => Binding::Header(name),
            Self::Arguments | Self::ArgumentsAndPath => Binding::Arguments,
        }
    }

    /// Returns whether the key is bound to the header `name`: a request with another value of it does not get the record.
    pub(crate) fn binds(self, name: &[u8]) -> bool {
        let is = |bound: &str| bound.as_bytes().eq_ignore_ascii_case(name);
        match self.binding() {
            Binding::Caller => is("authorization") || is("cookie"),
            Binding::Header(bound) => is(bound),
            Binding::Arguments | Binding::Nothing => false,
        }
    }

    /// Returns whether the path is part of the scope.
    pub(crate) const fn has_path(self) -> bool {
        matches!(self, Self::Path | Self::GlobalAndPath | Self::HeaderAndPath(_) | Self::ArgumentsAndPath)
    }

    /// Returns a hash of this scope for the policy's tag.
    pub(super) const fn hash(self) -> [u8; 8] {
        let tag = match self.binding() {
            Binding::Caller => PolicyTag::NONE.with(b"caller"),
            Binding::Nothing => PolicyTag::NONE.with(b"global"),
            Binding::Header(name) => with_name(PolicyTag::NONE.with(b"header"), name),
            Binding::Arguments => PolicyTag::NONE.with(b"arguments"),
        };
        if self.has_path() { tag.with(b"path").to_bytes() } else { tag.to_bytes() }
    }
}

/// What a request gets if its key is in flight with the same fingerprint.
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
    /// Refuses with this status at once, 400 to 599, or acknowledges with it, 200 to 299.
    ///
    /// **Acknowledge only if losing the event is acceptable.** A 2xx tells the sender that it need not repeat the event, while the
    /// execution in flight may still fail. [`InFlight::wait`] is the safe choice: the sender then gets the recorded response.
    ///
    /// An acknowledgement is made like a refusal: the policy's `errors` makes its body, by default problem details. It has no
    /// `Retry-After`, and with 204 or 205 no body.
    ///
    /// # Panics
    /// Unless the status is 200 to 299 or 400 to 599.
    #[must_use]
    pub const fn reject(status: u16) -> Self {
        require(validate::in_flight(status));
        Self { status, wait: None }
    }

    /// Waits for the recorded response for at most `max`. If it is not there by then, the request is refused with 409.
    ///
    /// A request that waits holds what its extractors took, such as a pooled connection.
    ///
    /// # Panics
    /// If `max` is zero, or more than 100 years.
    #[must_use]
    pub const fn wait(max: Duration) -> Self {
        require(validate::wait(max));
        Self { status: 409, wait: Some(max) }
    }

    /// Returns the status of the refusal or the acknowledgement.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.status
    }
}

/// For [`Once::in_flight`](crate::Once::in_flight). A plain function sends no status, so only the time to wait counts.
///
/// ```
/// use std::time::Duration;
/// use idem_axum::{Idempotency, InFlight, WhenInFlight};
///
/// let wait = Duration::from_secs(5);
/// assert_eq!(WhenInFlight::from(InFlight::wait(wait)), WhenInFlight::Wait(wait));
/// assert_eq!(WhenInFlight::from(InFlight::reject(423)), WhenInFlight::Reject);
/// let once = Idempotency::in_memory().once("ship", "order-17").in_flight(InFlight::wait(wait));
/// # let _ = once;
/// ```
impl From<InFlight> for WhenInFlight {
    fn from(in_flight: InFlight) -> Self {
        in_flight.wait.map_or(Self::Reject, Self::Wait)
    }
}

/// What of a response is replayed.
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

    /// Returns the parts of both.
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
    /// Makes a header for every replay, in place of a recorded one of the same name.
    ///
    /// # Panics
    /// If the name is not a token, or one that is never replayed or describes the recorded response, such as `Location`; or if the
    /// value has other characters than visible ASCII and spaces, or spaces at its ends.
    #[must_use]
    pub const fn new(name: &'static str, value: &'static str) -> Self {
        require(validate::added_header(name));
        require(validate::header_value(value));
        Self { name, value, on: Statuses::ALL }
    }

    /// Limits the header to replays whose recorded status is in `statuses`.
    ///
    /// # Panics
    /// If there is no status among these.
    #[must_use]
    pub const fn on(mut self, statuses: Statuses) -> Self {
        assert!(!statuses.is_empty(), "{}", validate::ADDED_TO_NOTHING);
        self.on = statuses;
        self
    }
}

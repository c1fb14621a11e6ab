//! Where an execution came from: what an operator, and a trace, want to know of it.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::engine::Attempt;
use crate::hash::hex;
use crate::record::Undecodable;

/// The endpoint of a request: its method and its route's template, such as `POST /orders/{id}`, and never its raw path.
///
/// It is at hand without an allocation, so one of more than 95 bytes is cut, and ends with an ellipsis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    length: u8,
    text: [u8; Self::LONGEST],
}

impl Endpoint {
    const LONGEST: usize = 95;
    const ELLIPSIS: &str = "…";

    /// No endpoint: for callers that have none.
    pub const UNKNOWN: Self = Self { length: 0, text: [0; Self::LONGEST] };

    /// The endpoint with this method and this template.
    ///
    /// ```
    /// use idem_runtime::Endpoint;
    ///
    /// assert_eq!(Endpoint::new("POST", "/orders/{id}").as_str(), "POST /orders/{id}");
    /// ```
    pub fn new(method: &str, route: &str) -> Self {
        let mut endpoint = Self::UNKNOWN;
        if !(endpoint.push(method) && endpoint.push(" ") && endpoint.push(route)) {
            while endpoint.as_str().len() + Self::ELLIPSIS.len() > Self::LONGEST {
                let shorter = endpoint.as_str().char_indices().next_back().map_or(0, |(start, _)| start);
                endpoint.length = u8::try_from(shorter).unwrap_or(0);
            }
            endpoint.push(Self::ELLIPSIS);
        }
        endpoint
    }

    /// Adds `text`, or as much of it as fits; `false` where that is not all.
    fn push(&mut self, text: &str) -> bool {
        let length = usize::from(self.length);
        let fits = whole_characters(text, Self::LONGEST - length);
        self.text[length..length + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length = u8::try_from(length + fits).unwrap_or(u8::MAX);
        fits == text.len()
    }

    /// The endpoint as text; empty where it is unknown.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }
}

/// The length of the longest start of `text` that has at most `most` bytes and ends between two characters.
fn whole_characters(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0)
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.as_str())
    }
}

/// The trace that a request belongs to, as its `traceparent` header says it (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span of whoever sent the request.
    pub parent_id: [u8; 8],
    /// The flags; the lowest bit says that the trace is sampled.
    pub flags: u8,
}

impl TraceParent {
    const LENGTH: usize = 1 + 16 + 8;
    const TEXT: usize = 55;

    /// Reads the value of a `traceparent` header; `None` where it is malformed, which a receiver is to disregard.
    ///
    /// ```
    /// use idem_runtime::TraceParent;
    ///
    /// let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// assert_eq!(TraceParent::parse(header.as_bytes()).unwrap().to_string(), header);
    /// ```
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_first_chunk::<{ Self::TEXT }>()?;
        let version = bytes_of::<1>(&head[..2])?[0];
        // Later versions may add parts at the end, after another dash.
        let ends = match version {
            0xff => false,
            0 => rest.is_empty(),
            _ => rest.first().is_none_or(|&next| next == b'-'),
        };
        if !ends || head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
            return None;
        }
        let trace_id = bytes_of::<16>(&head[3..35]).filter(|id| *id != [0; 16])?;
        let parent_id = bytes_of::<8>(&head[36..52]).filter(|id| *id != [0; 8])?;
        Some(Self { trace_id, parent_id, flags: bytes_of::<1>(&head[53..])?[0] })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex::<16>(&self.trace_id), hex::<8>(&self.parent_id), self.flags)
    }
}

/// The bytes that these lower-case hexadecimal digits stand for.
fn bytes_of<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, two) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(two[0])? << 4 | digit(two[1])?;
    }
    Some(bytes)
}

/// One execution among all: eight random bytes, which it shares with no other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExecutionId([u8; 8]);

impl ExecutionId {
    /// An id that nobody has had.
    fn new() -> Self {
        // Each state has keys of its own, random for each thread. An id is a name and no secret.
        Self(RandomState::new().hash_one(0_u8).to_le_bytes())
    }

    /// The id as it is.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::<8>(&self.0))
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutionId({self})")
    }
}

/// Where an execution came from: its endpoint, when it began, and the trace of its request.
///
/// A store keeps it as it is, opaque bytes, with the claim; the record that the execution leaves has it inside. A clone is
/// cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin(Bytes);

/// The layout: version, flags, time, id, TTL in seconds; where the flag says so, the trace; the endpoint to the end.
const VERSION: u8 = 1;
const HEAD: usize = 1 + 1 + 8 + 8 + 4;
const TRACED: u8 = 1;

impl Origin {
    /// The longest that an origin is, in bytes.
    pub(crate) const LONGEST: usize = HEAD + TraceParent::LENGTH + Endpoint::LONGEST;

    /// The origin of an execution that begins now.
    pub(crate) fn beginning(attempt: &Attempt, now: Timestamp) -> Self {
        let mut bytes =
            BytesMut::with_capacity(Self::LONGEST.min(HEAD + TraceParent::LENGTH + attempt.endpoint.as_str().len()));
        bytes.put_u8(VERSION);
        bytes.put_u8(if attempt.trace.is_some() { TRACED } else { 0 });
        bytes.put_u64_le(now.as_nanos());
        bytes.put_slice(ExecutionId::new().as_bytes());
        // Rounded up: a TTL must not become none.
        let ttl = attempt.rules.ttl;
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
        bytes.put_u32_le(u32::try_from(seconds).unwrap_or(u32::MAX));
        if let Some(TraceParent { trace_id, parent_id, flags }) = &attempt.trace {
            bytes.put_slice(trace_id);
            bytes.put_slice(parent_id);
            bytes.put_u8(*flags);
        }
        bytes.put_slice(attempt.endpoint.as_str().as_bytes());
        Self(bytes.freeze())
    }

    /// An origin that was stored earlier.
    ///
    /// # Errors
    /// The bytes are not those of an origin. What is stored with them is none the worse: a store takes such an origin for one
    /// that is not known.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Undecodable> {
        const SHORT: Undecodable = Undecodable("without a readable origin");
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(SHORT)?;
        let trace = match head[..2] {
            [VERSION, 0] => 0,
            [VERSION, TRACED] => TraceParent::LENGTH,
            _ => return Err(SHORT),
        };
        str::from_utf8(rest.get(trace..).ok_or(SHORT)?).map_err(|_| SHORT)?;
        Ok(Self(bytes))
    }

    /// What a store keeps. The format is versioned and private to the runtime.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The method and the route's template, such as `POST /orders/{id}`; empty where the adapter named none.
    pub fn endpoint(&self) -> &str {
        let start = if self.is_traced() { HEAD + TraceParent::LENGTH } else { HEAD };
        self.0.get(start..).and_then(|endpoint| str::from_utf8(endpoint).ok()).unwrap_or_default()
    }

    /// When the execution began, by the clock of its process.
    pub fn began_at(&self) -> Timestamp {
        Timestamp::from_nanos(u64::from_le_bytes(self.part(2)))
    }

    /// Which execution it was.
    pub fn execution(&self) -> ExecutionId {
        ExecutionId(self.part(10))
    }

    /// How long a record of its endpoint lives, in whole seconds.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(u32::from_le_bytes(self.part(18)).into())
    }

    /// The trace that its request belonged to.
    pub fn trace(&self) -> Option<TraceParent> {
        self.is_traced().then(|| {
            let [flags] = self.part(HEAD + 24);
            TraceParent { trace_id: self.part(HEAD), parent_id: self.part(HEAD + 16), flags }
        })
    }

    fn is_traced(&self) -> bool {
        self.part(1) == [TRACED]
    }

    /// Whoever makes an origin checks its length.
    fn part<const N: usize>(&self, start: usize) -> [u8; N] {
        self.0.get(start..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("endpoint", &self.endpoint())
            .field("began_at", &self.began_at())
            .field("execution", &self.execution())
            .field("trace", &self.trace().map(|trace| trace.to_string()))
            .finish_non_exhaustive()
    }
}

/// An execution that begins if the store lets it. Its origin is made when somebody asks, so that a replay costs none.
pub(crate) struct Beginning<'a> {
    attempt: &'a Attempt,
    /// `None` before a store is attached.
    clock: Option<&'a Arc<dyn Clock>>,
    origin: OnceLock<Origin>,
}

impl<'a> Beginning<'a> {
    pub(crate) fn new(attempt: &'a Attempt, clock: Option<&'a Arc<dyn Clock>>, known: Option<Origin>) -> Self {
        Self { attempt, clock, origin: known.map_or_else(OnceLock::new, OnceLock::from) }
    }

    pub(crate) fn origin(&self) -> &Origin {
        self.origin.get_or_init(|| {
            let now = self.clock.map_or_else(|| SystemClock::new().now(), Clock::now);
            Origin::beginning(self.attempt, now)
        })
    }

    pub(crate) fn origin_at(&self, now: Timestamp) -> &Origin {
        self.origin.get_or_init(|| Origin::beginning(self.attempt, now))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fingerprint::Fingerprint;
    use crate::key::StorageKey;
    use crate::rules::Rules;

    const TRACE: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const NOW: Timestamp = Timestamp::from_nanos(1_700_000_000_000_000_001);

    fn attempt() -> Attempt {
        let fingerprint = Fingerprint::from_bytes([7; 32]);
        Attempt::new(StorageKey::from_bytes([1; 32]), fingerprint, Rules::DEFAULT)
    }

    pub(crate) fn origin() -> Origin {
        Origin::beginning(&attempt().at(Endpoint::new("POST", "/orders/{id}")).within(TraceParent::parse(TRACE)), NOW)
    }

    #[test]
    fn an_origin_comes_back_from_its_bytes() {
        let endpoint = Endpoint::new("POST", "/orders/{id}");
        let trace = TraceParent::parse(TRACE);
        for (attempt, trace) in [(attempt().at(endpoint), None), (attempt().at(endpoint).within(trace), trace)] {
            let made = Origin::beginning(&attempt, NOW);
            let read = Origin::from_bytes(made.bytes().clone()).unwrap();
            assert_eq!(read.endpoint(), "POST /orders/{id}");
            assert_eq!((read.began_at(), read.trace()), (NOW, trace));
            assert_eq!((read.execution(), read.ttl()), (made.execution(), Rules::DEFAULT.ttl));
            for length in 0..if trace.is_some() { HEAD + TraceParent::LENGTH } else { HEAD } {
                assert!(Origin::from_bytes(made.bytes().slice(..length)).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn an_attempt_that_names_no_endpoint_has_an_origin_without_one() {
        let origin = Origin::beginning(&attempt(), NOW);
        assert_eq!((origin.endpoint(), origin.trace()), ("", None));
    }

    #[test]
    fn bytes_that_are_no_origin_are_refused() {
        let good = Origin::beginning(&attempt().at(Endpoint::new("GET", "/")), NOW);
        let with = |index: usize, byte: u8| {
            let mut bytes = good.bytes().to_vec();
            bytes[index] = byte;
            Origin::from_bytes(bytes.into())
        };
        assert!(with(0, 9).is_err(), "version");
        assert!(with(1, 9).is_err(), "flags");
        assert!(with(1, TRACED).is_err(), "a trace that is not there");
        assert!(with(HEAD, 0xff).is_err(), "no text");
        assert!(with(0, VERSION).is_ok());
    }

    #[test]
    fn no_two_executions_have_one_id() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| ExecutionId::new()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn a_ttl_is_rounded_up_and_never_wraps() {
        let with = |ttl| {
            let mut attempt = attempt();
            attempt.rules.ttl = ttl;
            Origin::beginning(&attempt, NOW).ttl()
        };
        assert_eq!(with(Duration::from_nanos(1)), Duration::from_secs(1));
        assert_eq!(with(Duration::from_millis(1500)), Duration::from_secs(2));
        assert_eq!(with(Duration::MAX), Duration::from_secs(u32::MAX.into()));
    }

    #[test]
    fn a_long_endpoint_is_cut_between_characters() {
        for route in ["/a".repeat(60), format!("/{}", "é".repeat(100)), "x".repeat(90), "𝄞".repeat(40)] {
            let endpoint = Endpoint::new("POST", &route);
            let whole = format!("POST {route}");
            let text = endpoint.as_str();
            assert!(text.len() <= Endpoint::LONGEST);
            match text.strip_suffix(Endpoint::ELLIPSIS) {
                None => assert_eq!(text, whole),
                Some(start) => assert!(whole.starts_with(start) && start.len() > 85, "{text}"),
            }
            assert_eq!(text == whole, whole.len() <= Endpoint::LONGEST, "{text}");
        }
        assert_eq!(Endpoint::UNKNOWN.as_str(), "");
    }

    #[test]
    fn a_traceparent_is_read_as_its_specification_says() {
        let parse = |text: &str| TraceParent::parse(text.as_bytes());
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(parse(&good).unwrap().to_string(), good);
        assert!(parse(&format!("cc-{trace}-{parent}-01-what-comes-later")).is_some());
        let bad = [
            String::new(),
            format!("{good}-more"),
            format!("ff-{trace}-{parent}-01"),
            format!("cc-{trace}-{parent}-01x"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}_{parent}-01"),
            format!("00-{trace}-{parent}-0"),
            format!("00-{trace}-{parent}-0g"),
        ];
        for text in bad {
            assert_eq!(parse(&text), None, "{text}");
        }
    }
}

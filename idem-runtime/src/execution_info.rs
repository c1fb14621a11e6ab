//! What an operator wants to know of an execution: its endpoint, its start, its policy, and the trace of its request.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::attempt::Attempt;
use crate::clock::Timestamp;
use crate::endpoint::{Endpoint, PolicyTag};
use crate::error::DecodeError;
use crate::hash::hex;
use crate::trace::TraceParent;

/// The identity of one execution: eight random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExecutionId([u8; 8]);

impl ExecutionId {
    fn random() -> Self {
        // Each state has its own keys, random for each thread. An id is a name and no secret.
        Self(RandomState::new().hash_one(0_u8).to_le_bytes())
    }

    /// Returns the bytes of the id.
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

/// What is known of an execution: its endpoint, when it started, how long its record lives, the tag of its policy, and the
/// trace of its request.
///
/// A store keeps it with the claim, as [bytes](Self::to_bytes); the record that the execution leaves contains it. A clone is
/// cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecutionInfo(Arc<Data>);

#[derive(PartialEq, Eq)]
struct Data {
    id: ExecutionId,
    started_at: Timestamp,
    ttl: Duration,
    policy: PolicyTag,
    trace: Option<TraceParent>,
    endpoint: Endpoint,
}

/// The layout: version, flags, start, id, TTL in seconds, policy tag; the trace, if the flag says so; the endpoint to the
/// end.
const VERSION: u8 = 1;
const HEAD: usize = 1 + 1 + 8 + 8 + 4 + 8;
const TRACED: u8 = 1;

impl ExecutionInfo {
    /// An execution of `attempt` that starts now.
    pub(crate) fn start(attempt: &Attempt, now: Timestamp) -> Self {
        let ttl = attempt.rules.ttl;
        // Whole seconds, rounded up: a TTL must not become zero.
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).min(u32::MAX.into());
        Self(Arc::new(Data {
            id: ExecutionId::random(),
            started_at: now,
            ttl: Duration::from_secs(seconds),
            policy: attempt.policy,
            trace: attempt.trace,
            endpoint: attempt.endpoint,
        }))
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// The bytes are damaged, or of a later version. The claim or record beside them is still good: a store treats such an info
    /// as unknown.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        const UNREADABLE: DecodeError = DecodeError("without a readable execution info");
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(UNREADABLE)?;
        let (trace, endpoint) = match head[..2] {
            [VERSION, 0] => (None, rest),
            [VERSION, TRACED] => {
                let (trace, endpoint) = rest.split_first_chunk::<{ TraceParent::LENGTH }>().ok_or(UNREADABLE)?;
                let trace = TraceParent { trace_id: part(trace, 0), parent_id: part(trace, 16), flags: trace[24] };
                (Some(trace), endpoint)
            }
            _ => return Err(UNREADABLE),
        };
        let mut text = Endpoint::UNKNOWN;
        if !text.push(str::from_utf8(endpoint).map_err(|_| UNREADABLE)?) {
            return Err(UNREADABLE);
        }
        Ok(Self(Arc::new(Data {
            id: ExecutionId(part(head, 10)),
            started_at: Timestamp::from_nanos(u64::from_le_bytes(part(head, 2))),
            ttl: Duration::from_secs(u32::from_le_bytes(part(head, 18)).into()),
            policy: PolicyTag(u64::from_le_bytes(part(head, 22))),
            trace,
            endpoint: text,
        })))
    }

    /// Returns what a store keeps. The format is versioned and private to the runtime.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.encoded_length());
        self.encode(&mut bytes);
        bytes.freeze()
    }

    pub(crate) fn encoded_length(&self) -> usize {
        HEAD + self.0.trace.map_or(0, |_| TraceParent::LENGTH) + self.0.endpoint.as_str().len()
    }

    pub(crate) fn encode(&self, bytes: &mut impl BufMut) {
        let Data { id, started_at, ttl, policy, trace, endpoint } = &*self.0;
        bytes.put_u8(VERSION);
        bytes.put_u8(if trace.is_some() { TRACED } else { 0 });
        bytes.put_u64_le(started_at.as_nanos());
        bytes.put_slice(id.as_bytes());
        bytes.put_u32_le(u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX));
        bytes.put_u64_le(policy.0);
        if let Some(TraceParent { trace_id, parent_id, flags }) = trace {
            bytes.put_slice(trace_id);
            bytes.put_slice(parent_id);
            bytes.put_u8(*flags);
        }
        bytes.put_slice(endpoint.as_str().as_bytes());
    }

    /// Returns the method and the route template, such as `POST /orders/{id}`; empty if the adapter named none.
    pub fn endpoint(&self) -> &str {
        self.0.endpoint.as_str()
    }

    /// Returns when the execution started, by the clock of its process.
    pub fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// Returns the id of the execution.
    pub fn id(&self) -> ExecutionId {
        self.0.id
    }

    /// Returns how long a record of the endpoint lives, in whole seconds.
    pub fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// Returns an info that says of an execution only that it started at the same endpoint under another policy: for a store that
    /// knows no more of it.
    #[doc(hidden)]
    #[must_use]
    pub fn under_another_policy(&self) -> Self {
        let Data { id, started_at, ttl, policy, trace, endpoint } = *self.0;
        Self(Arc::new(Data { id, started_at, ttl, policy: PolicyTag(!policy.0), trace, endpoint }))
    }

    /// Returns the tag of the policy under which the execution started.
    pub fn policy(&self) -> PolicyTag {
        self.0.policy
    }

    /// Returns the trace of the request.
    pub fn trace(&self) -> Option<TraceParent> {
        self.0.trace
    }
}

/// Returns `N` bytes from `start`, which the caller knows to be there.
fn part<const N: usize>(bytes: &[u8], start: usize) -> [u8; N] {
    bytes.get(start..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

impl fmt::Debug for ExecutionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionInfo")
            .field("endpoint", &self.endpoint())
            .field("started_at", &self.started_at())
            .field("id", &self.id())
            .field("trace", &self.trace().map(|trace| trace.to_string()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::attempt::Rules;
    use crate::fingerprint::Fingerprint;
    use crate::key::StorageKey;

    const TRACE: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const NOW: Timestamp = Timestamp::from_nanos(1_700_000_000_000_000_001);

    fn attempt() -> Attempt {
        let fingerprint = Fingerprint::from_bytes([7; 32]);
        Attempt::new(StorageKey::from_bytes([1; 32]), fingerprint, Rules::DEFAULT)
    }

    pub(crate) fn info() -> ExecutionInfo {
        let attempt = attempt().at(Endpoint::new("POST", "/orders/{id}")).within(TraceParent::parse(TRACE));
        ExecutionInfo::start(&attempt.under(PolicyTag::NONE.with(b"orders")), NOW)
    }

    #[test]
    fn an_info_comes_back_from_its_bytes() {
        let endpoint = Endpoint::new("POST", "/orders/{id}");
        let trace = TraceParent::parse(TRACE);
        let tag = PolicyTag::NONE.with(b"orders");
        for (attempt, trace) in [(attempt().at(endpoint), None), (attempt().at(endpoint).within(trace), trace)] {
            let made = ExecutionInfo::start(&attempt.under(tag), NOW);
            assert_eq!(made.to_bytes().len(), made.encoded_length());
            let read = ExecutionInfo::from_bytes(&made.to_bytes()).unwrap();
            assert_eq!(read, made);
            assert_eq!((read.endpoint(), read.policy()), ("POST /orders/{id}", tag));
            assert_eq!((read.started_at(), read.trace()), (NOW, trace));
            assert_eq!((read.id(), read.ttl()), (made.id(), Rules::DEFAULT.ttl));
            for length in 0..if trace.is_some() { HEAD + TraceParent::LENGTH } else { HEAD } {
                assert!(ExecutionInfo::from_bytes(&made.to_bytes()[..length]).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn an_attempt_without_an_endpoint_gives_an_info_without_one() {
        let info = ExecutionInfo::start(&attempt(), NOW);
        assert_eq!((info.endpoint(), info.trace()), ("", None));
    }

    #[test]
    fn bytes_of_no_info_are_refused() {
        let good = ExecutionInfo::start(&attempt().at(Endpoint::new("GET", "/")), NOW);
        let with = |index: usize, byte: u8| {
            let mut bytes = good.to_bytes().to_vec();
            bytes[index] = byte;
            ExecutionInfo::from_bytes(&bytes)
        };
        assert!(with(0, 9).is_err(), "version");
        assert!(with(1, 9).is_err(), "flags");
        assert!(with(1, TRACED).is_err(), "a trace that is missing");
        assert!(with(HEAD, 0xff).is_err(), "no text");
        assert!(with(0, VERSION).is_ok());
        let long = [&good.to_bytes()[..], &[b'x'; 96]].concat();
        assert!(ExecutionInfo::from_bytes(&long).is_err(), "too long");
    }

    #[test]
    fn no_two_executions_have_one_id() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| ExecutionId::random()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn a_ttl_is_rounded_up_and_never_wraps() {
        let with = |ttl| {
            let mut attempt = attempt();
            attempt.rules.ttl = ttl;
            ExecutionInfo::start(&attempt, NOW).ttl()
        };
        assert_eq!(with(Duration::from_nanos(1)), Duration::from_secs(1));
        assert_eq!(with(Duration::from_millis(1500)), Duration::from_secs(2));
        assert_eq!(with(Duration::MAX), Duration::from_secs(u32::MAX.into()));
    }
}

//! What comes out of the engine: how an execution ended, a replay, or the reason for a refusal.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::record::{Record, RecordBuilder};

/// A handler that ended: its response, and what to remember of it.
#[derive(Debug)]
pub struct Executed<T> {
    /// The response for the caller, who may be gone.
    pub response: T,
    /// What to remember.
    pub recording: Recording,
}

/// What to remember, and when that is known.
///
/// ```
/// use idem_runtime::{Executed, Outcome, RecordBuilder, RecordedStream, Recording};
/// use tokio::sync::oneshot;
///
/// /// A stream is sent at once, and recorded when `whole` has all of it.
/// fn streamed(whole: oneshot::Receiver<Vec<u8>>) -> Executed<&'static str> {
///     let recorded = async {
///         let outcome = match whole.await {
///             Ok(bytes) => {
///                 let mut record = RecordBuilder::new();
///                 record.put(&bytes);
///                 Outcome::Record(record)
///             }
///             // The stream broke off: the handler ran, and there is no response to replay.
///             Err(_) => Outcome::NotReplayable,
///         };
///         RecordedStream { outcome, delivery: None }
///     };
///     Executed { response: "a stream", recording: Recording::Live(Box::pin(recorded)) }
/// }
/// # let (_sender, receiver) = oneshot::channel();
/// # assert_eq!(streamed(receiver).response, "a stream");
/// ```
pub enum Recording {
    /// Known. The claim is completed first, and then the response is sent, so that a retry finds the record.
    Done(Outcome),
    /// Known when the response has been streamed. The response is sent at once, and the future records it as it flows.
    Live(Pin<Box<dyn Future<Output = RecordedStream> + Send>>),
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(outcome) => f.debug_tuple("Done").field(outcome).finish(),
            Self::Live(_) => f.write_str("Live(..)"),
        }
    }
}

/// The end of a live recording.
pub struct RecordedStream {
    /// What to remember.
    pub outcome: Outcome,
    /// The rest of the way to the caller. `None` if the caller has everything.
    pub delivery: Option<Box<dyn Delivery>>,
}

/// The caller's end of a stream that was recorded.
pub trait Delivery: Send {
    /// The claim has ended, and a retry would find the record. `content` is what was recorded; it shares the memory of the record
    /// that the store got. `None` if there is none.
    ///
    /// Returns a future that resolves when the caller has read everything, or is gone. Until then the stream takes the place of an
    /// execution, so that the memory of streams that are not read is limited by
    /// [`max_executions`](crate::IdempotencyBuilder::max_executions).
    ///
    /// If this is dropped without the call, the recording was torn down, and the caller does not have the whole stream.
    fn recorded(self: Box<Self>, content: Option<Bytes>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl fmt::Debug for RecordedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedStream").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

/// How a claim ends.
///
/// ```
/// use idem_runtime::{Outcome, RecordBuilder};
///
/// /// An adapter's rule: a failure is not recorded. A large response is not recorded either, but its handler does not run again.
/// fn outcome(status: u16, body: &[u8]) -> Outcome {
///     if status == 503 {
///         return Outcome::Release;
///     }
///     if body.len() > 1024 {
///         return Outcome::NotReplayable;
///     }
///     let mut record = RecordBuilder::with_capacity(2 + body.len());
///     record.put(&status.to_le_bytes());
///     record.put(body);
///     Outcome::Record(record)
/// }
/// assert!(matches!(outcome(201, b"tea"), Outcome::Record(record) if record.len() == 5));
/// ```
#[derive(Debug)]
pub enum Outcome {
    /// With this record, to be replayed.
    Record(RecordBuilder),
    /// The handler ran, but its response cannot be replayed: a retry is refused, and the handler does not run again.
    NotReplayable,
    /// As if the handler had not run: a retry runs it again. Only if the policy or the handler says so explicitly.
    Release,
}

impl Outcome {
    /// Returns what would be recorded, of an execution without a claim.
    pub(crate) fn into_content(self) -> Option<Bytes> {
        if let Self::Record(record) = self { Some(record.into_content()) } else { None }
    }
}

/// What an attempt got that was not refused.
#[derive(Debug)]
pub enum RunResult<T> {
    /// The handler ran for this request.
    Executed(T),
    /// The handler ran earlier; this is its record.
    Replayed(Replay),
}

/// What a retry gets from a record.
#[derive(Clone, Debug)]
pub struct Replay {
    pub(crate) content: Bytes,
    pub(crate) record: Record,
}

impl Replay {
    /// Returns the recorded bytes, in the format of the adapter.
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    /// Returns what is known of the execution that left the record. It is decoded when this is called.
    pub fn execution_info(&self) -> Option<ExecutionInfo> {
        self.record.execution_info()
    }
}

/// Why the handler did not run, or why there is nothing to replay.
///
/// ```
/// use idem_runtime::RefusalReason;
///
/// /// What an adapter for HTTP makes of it.
/// fn status(reason: &RefusalReason) -> u16 {
///     match reason {
///         RefusalReason::Mismatch => 422,
///         RefusalReason::InFlight | RefusalReason::OutcomeUnknown | RefusalReason::NotReplayable => 409,
///         _ => 503,
///     }
/// }
/// assert_eq!(status(&RefusalReason::StoreFull), 503);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RefusalReason {
    /// An execution with the same fingerprint is in flight.
    InFlight,
    /// The key is in use with another fingerprint.
    Mismatch,
    /// The key is in use at the same endpoint with another fingerprint, made under another policy: by another version of the
    /// endpoint, or by another service. It is not known whether the requests are the same.
    PolicyChanged,
    /// The owner of the claim disappeared, and what its handler did is unknown.
    OutcomeUnknown,
    /// The handler ran, but its response was not recorded.
    NotReplayable,
    /// The store could not be reached, its reply was not understood, or its record cannot be read.
    StoreUnavailable(StoreError),
    /// The store has no room for a new key.
    StoreFull,
    /// The maximum number of executions is running.
    TooManyExecutions,
    /// The value for the [fingerprint](crate::Once::fingerprint) does not serialize.
    FingerprintFailed(Arc<dyn std::error::Error + Send + Sync>),
}

/// The names of the reasons in spans and metrics, for adapters, which have them in their refusals.
pub mod codes {
    /// [`RefusalReason::InFlight`](super::RefusalReason::InFlight).
    pub const KEY_LOCKED: &str = "idempotency_key_locked";
    /// [`RefusalReason::Mismatch`](super::RefusalReason::Mismatch).
    pub const KEY_MISMATCH: &str = "idempotency_key_mismatch";
    /// [`RefusalReason::PolicyChanged`](super::RefusalReason::PolicyChanged).
    pub const POLICY_CHANGED: &str = "idempotency_policy_changed";
    /// [`RefusalReason::OutcomeUnknown`](super::RefusalReason::OutcomeUnknown).
    pub const OUTCOME_UNKNOWN: &str = "idempotency_outcome_unknown";
    /// [`RefusalReason::NotReplayable`](super::RefusalReason::NotReplayable).
    pub const NOT_REPLAYABLE: &str = "idempotency_not_replayable";
    /// [`RefusalReason::StoreUnavailable`](super::RefusalReason::StoreUnavailable).
    pub const STORE_UNAVAILABLE: &str = "idempotency_store_unavailable";
    /// [`RefusalReason::StoreFull`](super::RefusalReason::StoreFull).
    pub const STORE_FULL: &str = "idempotency_store_full";
    /// [`RefusalReason::TooManyExecutions`](super::RefusalReason::TooManyExecutions).
    pub const TOO_MANY_EXECUTIONS: &str = "idempotency_too_many_executions";
}

impl RefusalReason {
    /// Returns whether the same attempt may succeed later. If it may, nothing was done for this attempt.
    ///
    /// The consumer of a queue that runs a function [once](crate::Idempotency::once) for each message does this:
    ///
    /// | outcome | retryable | what the consumer does |
    /// |---|---|---|
    /// | `Ok`: the function succeeded, now or earlier | | acknowledge |
    /// | the function's own error, which released the claim | | negative-acknowledge, or what the error asks for |
    /// | [`InFlight`](Self::InFlight) | yes | negative-acknowledge; never acknowledge, since the execution may still fail |
    /// | [`StoreUnavailable`](Self::StoreUnavailable), [`StoreFull`](Self::StoreFull), [`TooManyExecutions`](Self::TooManyExecutions) | yes | negative-acknowledge |
    /// | [`StoreUnavailable`](Self::StoreUnavailable) because of [`StoreError::Unreadable`] | no | dead letter |
    /// | [`Mismatch`](Self::Mismatch), [`OutcomeUnknown`](Self::OutcomeUnknown) | no | dead letter |
    /// | [`NotReplayable`](Self::NotReplayable): the function succeeded, and its value is lost | no | dead letter, or acknowledge if nothing needs the value |
    /// | any other | no | dead letter |
    ///
    /// ```
    /// use idem_runtime::{RefusalReason, StoreError};
    ///
    /// assert!(RefusalReason::InFlight.is_retryable());
    /// assert!(RefusalReason::StoreUnavailable(StoreError::unavailable("connection reset")).is_retryable());
    /// assert!(!RefusalReason::StoreUnavailable(StoreError::unreadable("bad checksum")).is_retryable());
    /// assert!(!RefusalReason::OutcomeUnknown.is_retryable());
    /// ```
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::InFlight | Self::StoreFull | Self::TooManyExecutions => true,
            Self::StoreUnavailable(error) => !matches!(error, StoreError::Unreadable(_)),
            _ => false,
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlight => "an execution with this key is in flight",
            Self::Mismatch => "the key is in use with another fingerprint",
            Self::PolicyChanged => "the key is in use with another fingerprint, made under another policy",
            Self::OutcomeUnknown => "the outcome of the execution with this key is unknown",
            Self::NotReplayable => "the handler ran, but its response was not recorded",
            Self::StoreUnavailable(StoreError::Unreadable(cause)) => {
                return write!(f, "the record of the key cannot be read: {cause}");
            }
            Self::StoreUnavailable(_) => "the store is unavailable",
            Self::StoreFull => "the store has no room for a new key",
            Self::TooManyExecutions => "too many executions are running",
            Self::FingerprintFailed(cause) => {
                return write!(f, "the value for the fingerprint does not serialize: {cause}");
            }
        })
    }
}

impl std::error::Error for RefusalReason {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::StoreUnavailable(source) => Some(source),
            Self::FingerprintFailed(source) => Some(&**source),
            _ => None,
        }
    }
}

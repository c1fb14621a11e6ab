//! The engine of `idem`: it makes sure that a handler runs at most once for a key, that it runs to its end, and that a
//! retry gets the recorded response.
//!
//! This crate does not depend on a web framework. It is for authors of stores ([`Store`]) and of adapters ([`Idempotency::run`]), and for
//! functions without HTTP ([`Idempotency::once`]). An adapter, such as `idem-axum`, connects this crate to a web framework, and re-exports
//! what users need.
//!
//! These words have a fixed meaning. A **key** is what the client sends, and its **scope** says whose key it is. A **fingerprint** covers
//! the parts of a request that a retry must repeat. A **claim** is the right to run the handler, and an **execution** is one run of it. A
//! **record** is what the execution left in the store, and a **replay** is a response made from it.
//!
//! # From a request to a response
//!
//! An adapter makes an [`Attempt`] from a request, and runs it together with the handler:
//!
//! ```
//! use idem_runtime::{
//!     Attempt, Executed, Fingerprint, Idempotency, Key, Outcome, RecordBuilder, Recording, Rules, RunResult, Scope,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let idempotency = Idempotency::in_memory();
//!
//! // Whose key, which one, and what must be equal on a retry.
//! let scope = Scope::arguments().with(b"tenant-7");
//! let mut fingerprint = Fingerprint::builder();
//! fingerprint.part(b'b', b"two teas");
//! let key = idempotency.storage_key(&scope, &Key::parse(b"order-1")?);
//! let attempt = Attempt::new(key, fingerprint.finish(), Rules::DEFAULT);
//!
//! // What the caller gets, and what a retry gets, in a format of the adapter.
//! let handler = |_lease| async {
//!     let mut record = RecordBuilder::new();
//!     record.put(b"order 17");
//!     Executed { response: "order 17".to_owned(), recording: Recording::Done(Outcome::Record(record)) }
//! };
//!
//! let first = idempotency.run(attempt, handler).await?;
//! assert!(matches!(first, RunResult::Executed(response) if response == "order 17"));
//! let RunResult::Replayed(replay) = idempotency.run(attempt, handler).await? else { panic!("the handler ran twice") };
//! assert_eq!(replay.content(), "order 17");
//! # Ok(())
//! # }
//! ```
//!
//! # The states of a key
//!
//! ```text
//!              Store::begin: Begin::Claimed, and the handler starts
//!   ┌──────┐ ──────────────────────────────────────────────────▶ ┌───────────┐
//!   │ free │                                                     │ in flight │
//!   └──────┘ ◀────────────────────────────────────────────────── └───────────┘
//!     ▲  ▲      Claim::release: Outcome::Release                     │   │
//!     │  │                                                           │   │
//!     │  │  TTL  ┌────────────────────────────┐  Claim::complete     │   │
//!     │  └────── │ recorded or not replayable │ ◀────────────────────┘   │
//!     │          └────────────────────────────┘                          │
//!     │  TTL  ┌───────────┐  the claim is dropped, or its lease expires  │
//!     └────── │ abandoned │ ◀────────────────────────────────────────────┘
//!             └───────────┘ ──▶ in flight: Claim::renew, only under Abandoned::Rerun
//! ```
//!
//! | state | what the store reports | what [`Idempotency::run`] returns |
//! |---|---|---|
//! | free | [`Begin::Claimed`] | [`RunResult::Executed`] |
//! | in flight | [`Begin::InFlight`] | [`RefusalReason::InFlight`], at once or after [`Rules::wait`] |
//! | recorded | [`Begin::Completed`] | [`RunResult::Replayed`] |
//! | not replayable: a record without a response | [`Begin::Completed`] | [`RefusalReason::NotReplayable`] |
//! | abandoned: in flight without an owner | [`Begin::Abandoned`] | [`RefusalReason::OutcomeUnknown`]; [`RunResult::Executed`] under [`Abandoned::Rerun`] |
//!
//! Unless the key is free, an attempt with another fingerprint gets [`RefusalReason::Mismatch`]. It gets [`RefusalReason::PolicyChanged`]
//! instead if the key was used at the same endpoint under another [policy](Attempt::under). If the store fails, the handler does not start.
//!
//! # Without HTTP
//!
//! Queue consumers, webhook receivers and cron jobs need no adapter. [`Idempotency::once`] runs a plain async function at most once for a
//! scope and a key, and a retry gets the recorded value. The attribute [`idempotent`](macro@idempotent) wraps a function with arguments in
//! such a call:
//!
//! ```text
//! let receipt: Receipt = idempotency.once("ship", &order.id).fingerprint(&order).run(async move || ship(order).await).await?;
//! ```
//!
//! An `Err` and a panic release the claim, so that a retry runs the function again. The documentation of [`RefusalReason::is_retryable`]
//! says what a consumer should do with each refusal: acknowledge, negative-acknowledge, or dead letter.
//!
//! The function takes effect exactly once only if its effects are rows in PostgreSQL or SQLite, and only with `run_in` of the crate
//! `idem-sqlx`.

// For `intercept`, which names the crate as others do.
#[cfg(test)]
extern crate self as idem_runtime;

mod attempt;
#[cfg(feature = "cached")]
mod cached_store;
#[doc(hidden)]
pub mod caller_transaction;
mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod endpoint;
mod engine;
mod error;
mod execution_info;
mod fingerprint;
mod functions;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod key;
mod lease;
mod memory;
mod outcome;
#[doc(hidden)]
pub mod panics;
#[doc(hidden)]
pub mod private;
mod record;
pub mod remote;
mod scope;
mod store;
mod sync;
mod telemetry;
#[cfg(test)]
mod test_support;
mod trace;
#[doc(hidden)]
pub mod tracing_context;
#[doc(hidden)]
pub mod transaction;

pub use attempt::{Abandoned, Attempt, Rules};
#[cfg(feature = "cached")]
pub use cached_store::{CachedClaim, CachedStore, CachedStoreBuilder};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use endpoint::{Endpoint, PolicyTag};
pub use engine::{
    DrainTimeout, Idempotency, IdempotencyBuilder, KeyReport, KeyStatus, SettleError, Settled, Shadow, ShadowOutcome,
};
pub use error::{DecodeError, StoreError};
pub use execution_info::{ExecutionId, ExecutionInfo};
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use functions::{Once, WhenInFlight};
/// ```
/// use idem_runtime::{Idempotency, RefusalReason, idempotent};
///
/// #[idempotent(engine = idempotency, scope = "ship", key = order, ttl = "7d")]
/// async fn ship(idempotency: Idempotency, order: u64) -> Result<String, RefusalReason> {
///     Ok(format!("parcel of order {order}"))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), RefusalReason> {
/// let idempotency = Idempotency::in_memory();
/// assert_eq!(ship(idempotency.clone(), 17).await?, "parcel of order 17");
/// // The message is delivered again: the function does not run, and its value is the same.
/// assert_eq!(ship(idempotency, 17).await?, "parcel of order 17");
/// # Ok(())
/// # }
/// ```
///
pub use idem_macros::idempotent_function as idempotent;
pub use key::{InvalidKey, Key, MAX_KEY, StorageKey};
pub use lease::Lease;
pub use memory::{MemoryClaim, MemoryStore, MemoryStoreBuilder, Usage};
#[doc(hidden)]
pub use outcome::codes;
pub use outcome::{Delivery, Executed, Outcome, RecordedStream, Recording, RefusalReason, Replay, RunResult};
pub use record::{Record, RecordBuilder};
pub use scope::Scope;
pub use store::{Begin, BeginOptions, Claim, KeyPage, KeyState, Store, StoreCapabilities, StoredEntry};
#[cfg(feature = "metrics")]
pub use telemetry::metrics;
pub use telemetry::span::RequestSpan;
pub use trace::TraceParent;

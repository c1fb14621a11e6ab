//! The engine of `idem`: it makes sure that a body runs at most once for a key, that it runs to its end, and that a
//! retry gets the recorded answer.
//!
//! This crate knows no web framework. Users of axum depend on `idem-axum`, which re-exports what they need; this crate is
//! for authors of stores ([`Store`]) and of adapters ([`Idempotency::run`]).
//!
//! The words, everywhere the same: a **key** is what the client sends, its **scope** says whose it is; a **fingerprint** is
//! what must be equal on a retry; a **claim** is the right to run the body, an **execution** one run of it, a **record**
//! what the execution left behind, a **replay** an answer made from a record.
//!
//! # From a request to an answer
//!
//! An adapter makes an [`Attempt`] of a request, and hands it over together with the body:
//!
//! ```
//! use idem_runtime::{
//!     Answer, Attempt, Draft, Ended, Fingerprint, Idempotency, Key, Outcome, Recording, Rules, Scope, StorageKey,
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
//! let key = StorageKey::new(&scope, &Key::parse(b"order-1")?);
//! let attempt = Attempt::new(key, fingerprint.finish(), Rules::DEFAULT);
//!
//! // What the caller gets, and what a retry gets, in a format of the adapter's own.
//! let body = || async {
//!     let mut draft = Draft::new();
//!     draft.put(b"order 17");
//!     Ended { response: "order 17".to_owned(), recording: Recording::Done(Outcome::Answer(draft)) }
//! };
//!
//! assert!(matches!(idempotency.run(attempt, body).await?, Answer::Ran(response) if response == "order 17"));
//! let Answer::Recorded(replay) = idempotency.run(attempt, body).await? else { panic!("the body ran twice") };
//! assert_eq!(replay.answer(), "order 17");
//! # Ok(())
//! # }
//! ```
//!
//! # The states of a key
//!
//! ```text
//!              Store::begin: Begin::Claimed, and the body starts
//!   ┌──────┐ ──────────────────────────────────────────────────▶ ┌───────────┐
//!   │ free │                                                     │ in flight │
//!   └──────┘ ◀────────────────────────────────────────────────── └───────────┘
//!     ▲  ▲      Claim::release: Outcome::Release                     │   │
//!     │  │                                                           │   │
//!     │  │  TTL  ┌────────────────────────────┐  Claim::complete     │   │
//!     │  └────── │ recorded or not replayable │ ◀────────────────────┘   │
//!     │          └────────────────────────────┘                          │
//!     │  TTL  ┌───────────┐  the claim is dropped, or its lease is over  │
//!     └────── │ abandoned │ ◀────────────────────────────────────────────┘
//!             └───────────┘ ──▶ in flight: Claim::renew, under Abandoned::Rerun alone
//! ```
//!
//! | state | what the store says | what [`Idempotency::run`] says |
//! |---|---|---|
//! | free | [`Begin::Claimed`] | [`Answer::Ran`] |
//! | in flight | [`Begin::InFlight`] | [`Refused::InFlight`], at once or after [`Rules::wait`] |
//! | recorded | [`Begin::Completed`] | [`Answer::Recorded`] |
//! | not replayable: a record without its answer | [`Begin::Completed`] | [`Refused::NotReplayable`] |
//! | abandoned: in flight without an owner | [`Begin::Abandoned`] | [`Refused::OutcomeUnknown`]; [`Answer::Ran`] under [`Abandoned::Rerun`] |
//!
//! Unless the key is free, an attempt with another fingerprint is [`Refused::Mismatch`]. An error of the store is no state:
//! the body does not start.

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod counted;
mod ending;
mod engine;
mod erased;
mod execution;
mod expire;
mod fingerprint;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod key;
#[cfg(feature = "layered")]
mod layered;
mod lease;
mod memory;
#[cfg(feature = "metrics")]
pub mod metrics;
mod observation;
mod origin;
mod record;
mod rules;
mod scope;
mod seal;
mod store;
mod sync;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use engine::{
    Answer, Attempt, Idempotency, IdempotencyBuilder, Inspection, Refused, Replay, SettleError, Settled, Shadow, State,
    Undrained, Would,
};
pub use execution::{Ended, Outcome, Recorded, Recording};
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use key::{InvalidKey, Key, MAX_KEY, StorageKey};
#[cfg(feature = "layered")]
pub use layered::{Layered, LayeredBuilder, LayeredClaim};
pub use lease::Lease;
pub use memory::{MemoryClaim, MemoryStore, MemoryStoreBuilder, Usage};
pub use observation::Observation;
pub use origin::{Endpoint, ExecutionId, Origin, TraceParent};
pub use record::{Draft, Record, Undecodable};
pub use rules::{Abandoned, Rules};
pub use scope::Scope;
pub use store::{Begin, Claim, Duties, Found, Standing, Store, StoreError, Terms};

//! The engine of `idem`: it makes sure that a body runs at most once for a key, that it runs to its end, and that a
//! retry gets the recorded answer.
//!
//! This crate knows no web framework. Users of axum depend on `idem-axum`, which re-exports what they need; this crate is
//! for authors of stores ([`Store`]) and of adapters ([`Idempotency::run`]).
//!
//! The words, everywhere the same: a **key** is what the client sends, its **scope** says whose it is; a **fingerprint** is
//! what must be equal on a retry; a **claim** is the right to run the body, an **execution** one run of it, a **record**
//! what the execution left behind, a **replay** an answer made from a record.

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
mod record;
mod rules;
mod scope;
mod seal;
mod store;
mod sync;

pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use engine::{Answer, Attempt, Idempotency, IdempotencyBuilder, Refused, Undrained};
pub use execution::{Ended, Outcome, Recorded, Recording};
pub use fingerprint::{Fingerprint, FingerprintBuilder};
pub use key::{InvalidKey, Key, MAX_KEY, StorageKey};
#[cfg(feature = "layered")]
pub use layered::{Layered, LayeredBuilder, LayeredClaim};
pub use lease::Lease;
pub use memory::{MemoryClaim, MemoryStore, MemoryStoreBuilder, Usage};
pub use observation::Observation;
pub use record::{Draft, Record, Undecodable};
pub use rules::{Abandoned, Rules};
pub use scope::Scope;
pub use store::{Begin, Claim, Duties, Store, StoreError};

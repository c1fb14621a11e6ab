#![doc = include_str!("../README.md")]

mod endpoint;
mod extract;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod json;
mod layer;
pub mod observing;
mod policy;
#[doc(hidden)]
pub mod private;
mod refusal;
mod request;
mod response;
mod statuses;

pub use extract::IdempotencyKey;
pub use idem_macros::idempotent;
#[cfg(feature = "conformance")]
pub use idem_runtime::conformance;
#[cfg(feature = "metrics")]
pub use idem_runtime::metrics;
pub use idem_runtime::{
    Abandoned, Begin, Claim, Clock, Duties, Fingerprint, Idempotency, IdempotencyBuilder, InvalidKey, Lease,
    ManualClock, MemoryClaim, MemoryStore, MemoryStoreBuilder, Record, StorageKey, Store, StoreError, SystemClock,
    Timestamp, Undrained, Usage,
};
#[cfg(feature = "layered")]
pub use idem_runtime::{Layered, LayeredBuilder, LayeredClaim};
pub use layer::{IdempotencyLayer, IdempotencyService};
pub use policy::{AddedHeader, InFlight, Part, Policy, Replay, Scope};
pub use refusal::Refusal;
pub use response::Unrecorded;
pub use statuses::Statuses;

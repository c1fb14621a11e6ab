#![doc = include_str!("../README.md")]
//!
//! # Where to read on
//!
//! [`#[idempotent]`](macro@idempotent) has every option, [`Policy`] the same as a `const`, [`Refusal`] every answer that the
//! runtime makes itself, [`Policies`] what clients are told, and [`Store`] the contract of stores. The [`guide`] has a page for
//! each question that comes up later: [fingerprints](guide::fingerprints), [scopes and rotating tokens](guide::scopes),
//! [what is recorded](guide::recording), [crashes](guide::crashes), [load balancers and stores](guide::stores),
//! [tests](guide::testing) and [migration](guide::migrating).
//!
#![doc = include_str!("guide/states.md")]

#[cfg(feature = "admin")]
pub mod admin;
mod call;
mod context;
mod extract;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(doc)]
pub mod guide;
mod layer;
mod link;
mod policies;
mod policy;
#[doc(hidden)]
pub mod private;
mod request;
mod response;
mod shadow;
mod telemetry;

pub use extract::IdempotencyKey;
pub use idem_macros::idempotent;
#[cfg(feature = "conformance")]
pub use idem_runtime::conformance;
#[cfg(feature = "metrics")]
pub use idem_runtime::metrics;
pub use idem_runtime::{
    Abandoned, Begin, BeginOptions, Claim, Clock, DrainTimeout, ExecutionId, ExecutionInfo, Fingerprint, Idempotency,
    IdempotencyBuilder, InvalidKey, Key, KeyReport, KeyState, KeyStatus, Lease, ManualClock, MemoryClaim, MemoryStore,
    MemoryStoreBuilder, Outcome, Record, RecordBuilder, RefusalReason, Scope as KeyScope, SettleError, Settled,
    StorageKey, Store, StoreCapabilities, StoreError, StoredEntry, SystemClock, Timestamp, TraceParent, Usage,
};
#[cfg(feature = "cached")]
pub use idem_runtime::{CachedClaim, CachedStore, CachedStoreBuilder};
pub use idem_runtime::{Once, WhenInFlight};
pub use layer::{IdempotencyLayer, IdempotencyService};
#[cfg(feature = "utoipa")]
pub use policies::Undescribed;
pub use policies::{IdempotentHandler, Policies};
pub use policy::{AddedHeader, InFlight, Part, Policy, Refusal, Replay, Scope, Statuses};
pub use response::Unrecorded;

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
mod endpoint;
mod extract;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(doc)]
pub mod guide;
mod json;
mod layer;
pub mod observing;
mod policies;
mod policy;
#[doc(hidden)]
pub mod private;
mod refusal;
mod request;
mod response;
mod shadow;
mod statuses;

pub use extract::IdempotencyKey;
pub use idem_macros::idempotent;
#[cfg(feature = "conformance")]
pub use idem_runtime::conformance;
#[cfg(feature = "metrics")]
pub use idem_runtime::metrics;
pub use idem_runtime::{
    Abandoned, Begin, Claim, Clock, Duties, ExecutionId, Fingerprint, Found, Idempotency, IdempotencyBuilder,
    InvalidKey, Lease, ManualClock, MemoryClaim, MemoryStore, MemoryStoreBuilder, Origin, Record, Standing, StorageKey,
    Store, StoreError, SystemClock, Terms, Timestamp, TraceParent, Undrained, Usage,
};
#[cfg(feature = "layered")]
pub use idem_runtime::{Layered, LayeredBuilder, LayeredClaim};
pub use layer::{IdempotencyLayer, IdempotencyService};
#[cfg(feature = "utoipa")]
pub use policies::Undescribed;
pub use policies::{IdempotentHandler, Policies};
pub use policy::{AddedHeader, InFlight, Part, Policy, Replay, Scope};
pub use refusal::Refusal;
pub use response::Unrecorded;
pub use statuses::Statuses;

//! The store in memory under a scheduler that decides which thread runs at every step: the very files of
//! `idem-runtime/src/memory`, compiled over the primitives in `sync`, and once more with each of the seeded [`faults`].
//!
//! What is explored: every order of the steps at the locks of the claims, of the records and of the sweeps, and at the counters
//! of the quota. What is taken as one step: a call of tokio's mutex, which says whether a claim has an owner, and of its
//! `Notify`, on which waiters wait; and a call of moka, in whose place is a map under a lock that never removes anything by itself.
//! What is not explored: moka's inside, and what it removes in real time; orders that weak memory allows besides (the counters are
//! changed by single read-modify-write operations, and all else is under a lock); the janitor's own timer (a test makes its
//! rounds); and the engine, whose tasks need tokio's runtime: the model, the histories and the simulated network in
//! `idem-proofs` are about that.

pub mod faults;
pub mod scenario;
mod subject;
mod sync;

// The names by which the store's files know what they need.
mod clock {
    pub(crate) use idem_runtime::{Clock, SystemClock, Timestamp};
}
mod error {
    pub(crate) use idem_runtime::StoreError;
}
mod execution_info {
    pub(crate) use idem_runtime::ExecutionInfo;
}
mod fingerprint {
    pub(crate) use idem_runtime::Fingerprint;
}
mod key {
    pub(crate) use idem_runtime::StorageKey;
}
mod record {
    pub(crate) use idem_runtime::Record;
}
mod store {
    pub(crate) use idem_runtime::{
        Begin, BeginOptions, Claim, KeyPage, KeyState, Store, StoreCapabilities, StoredEntry,
    };
}

/// The store, sound and with each fault.
pub mod stores {
    include!(concat!(env!("OUT_DIR"), "/stores.rs"));
}

//! The store in memory under a scheduler that decides which thread goes on at every step: the very files of
//! `idem-runtime/src/memory`, compiled over the primitives in `sync`, and once more with each of the seeded [`faults`].
//!
//! What is explored: every order of the steps at the shards' locks and the counters of the account. What is taken as one
//! step: a call of tokio's mutex, on which waiters wait. What is not explored: orders that weak memory allows besides (the counters are changed by single read-modify-write operations,
//! and all else is under a lock), the janitor's own timer (a test makes its rounds), and the engine, whose tasks need
//! tokio's runtime: the model, the histories and the simulated network in `idem-proofs` are about that.

pub mod faults;
pub mod scenario;
mod subject;
mod sync;

// The names by which the store's files know what they need.
mod clock {
    pub(crate) use idem_runtime::{Clock, SystemClock, Timestamp};
}
mod fingerprint {
    pub(crate) use idem_runtime::Fingerprint;
}
mod key {
    pub(crate) use idem_runtime::StorageKey;
}
mod origin {
    pub(crate) use idem_runtime::Origin;
}
mod record {
    pub(crate) use idem_runtime::Record;
}
mod store {
    pub(crate) use idem_runtime::{Begin, Claim, Duties, Found, Standing, Store, StoreError, Terms};
}

/// The store, sound and with each fault.
pub mod stores {
    include!(concat!(env!("OUT_DIR"), "/stores.rs"));
}

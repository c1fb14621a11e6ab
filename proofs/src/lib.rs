//! Proofs of the promises: histories of what happened, and checkers that read them.

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod faulty;
pub mod history;
pub mod invariants;
pub mod map_store;
pub mod model;
pub mod network;
pub mod trace;

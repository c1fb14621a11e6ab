//! Proofs of the promises: histories of what happened, and checkers that read them.

pub mod dice;
#[cfg(feature = "http")]
pub mod faulty;
#[cfg(feature = "http")]
pub mod history;
#[cfg(feature = "http")]
pub mod invariants;
#[cfg(feature = "http")]
pub mod map_store;
#[cfg(feature = "http")]
pub mod model;
#[cfg(feature = "http")]
pub mod network;
pub mod reference;

//! What load does to the store and to a server: an expiry storm, and a soak.

mod client;
pub mod process;
pub mod soak;

//! A simulated network: a server with idempotent endpoints and clients that retry, while everything between them fails.

mod chaos;
mod client;
mod inline;
mod server;
mod shop;

pub use chaos::{Outcome, Plan, run, run_over};
pub use client::{Client, Order, Reply, script};
pub use server::{Keeps, RemoteFault, Server, listen};
pub use shop::{Protection, Shop, identity};

/// How long a response may take once nothing goes wrong any more: the longest body, the longest wait, and the network.
pub const BOUNDS: crate::invariants::Bounds = crate::invariants::Bounds {
    response: std::time::Duration::from_secs(9),
    replay: std::time::Duration::from_millis(500),
};

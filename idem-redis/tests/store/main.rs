//! The store over real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

mod cluster;
mod cluster_pages;
#[allow(unreachable_pub, reason = "a module of two binaries of tests")]
#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod connections;
mod durability;
mod engine;
mod inspect;
mod late_begins;
mod leases;
mod network;
mod server_failures;
mod setup;
mod tls;
mod traffic;
mod waiting;

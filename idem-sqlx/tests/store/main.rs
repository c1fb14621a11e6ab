//! The stores over real servers and files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod clocked_store;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod common;
mod histories;
mod operator;
mod postgres_conformance;
mod postgres_connections;
mod postgres_costs;
mod postgres_hosts;
mod postgres_network;
mod postgres_outages;
mod postgres_pgbouncer;
mod postgres_refusals;
mod postgres_table;
mod postgres_waiting;
mod sqlite_conformance;
mod sqlite_file;
mod sqlite_processes;

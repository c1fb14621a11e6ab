//! Real servers for tests, each on a port and in a folder of its own, and a network between that fails on demand.

pub mod browser;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod statements;

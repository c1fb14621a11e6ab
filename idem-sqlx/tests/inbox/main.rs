//! `once` in a transaction of the caller: the id of a message, what its function writes and what is recorded are one commit.
#![cfg(all(feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

mod concurrency;
mod endings;
mod failures;
mod mounting;
mod shop;

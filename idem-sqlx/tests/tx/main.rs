//! Exactly once: the record and what the handler wrote are one commit.
#![cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

mod bytes;
mod commits;
mod concurrency;
mod endings;
mod entered;
mod misuse;
mod mounting;
mod shop;
mod warnings;

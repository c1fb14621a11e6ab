//! What one request costs with `#[idempotent]` and without, in instructions, in time and in memory. `BENCHMARKS.md` says
//! how to run it and what the numbers mean.
//!
//! A benchmark that measures the wrong path is worse than none, so every answer that is timed is also checked: its
//! status, whether it is marked as a replay, and how often the body of the handler ran.

pub mod app;
pub mod batch;
pub mod row;

/// Any failure ends a benchmark with its message: a number from a broken run is worth nothing.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

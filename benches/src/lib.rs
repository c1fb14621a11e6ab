//! What one request costs with `#[idempotent]` and without: in instructions, in time and in memory. `BENCHMARKS.md` says
//! how to run it and what the numbers mean.
//!
//! A benchmark that measures the wrong path is worse than none. So every response that is timed is also checked, and a run
//! in which one response was not what its row is about fails: its status, whether it is marked as a replay, and how often
//! the handler ran.

pub mod app;
pub mod batch;
pub mod chart;
pub mod cli;
pub mod document;
pub mod floors;
pub mod handwritten;
pub mod http;
pub mod in_process;
pub mod load;
pub mod machine;
pub mod parts;
pub mod promises;
pub mod report;
pub mod row;
pub mod sample;
pub mod scale;
#[cfg(feature = "stores")]
pub mod stores;
pub mod subject;

/// Any failure ends a benchmark with its message: a number from a broken run is worth nothing.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

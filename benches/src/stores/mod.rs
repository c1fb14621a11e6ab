//! What the stores cost: each beside the bare commands of its server, and under many tasks at once. `BENCHMARKS.md` says how
//! to run it and what the numbers mean.
//!
//! As in the other benchmarks every response that is timed is also checked, and one wrong response ends the run. How many round
//! trips a step takes is not believed but counted, by a proxy between them, in its own run.

pub mod bare;
pub mod chart;
pub mod cli;
pub mod place;
pub mod ratios;
pub mod report;
pub mod round_trips;
pub mod subject;
pub mod throughput;
pub mod transactions;

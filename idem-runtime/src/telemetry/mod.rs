//! What an operator sees: the span of a request, and the metrics.

pub(crate) mod claim;
pub(crate) mod counters;
#[cfg(feature = "metrics")]
pub mod metrics;
pub(crate) mod span;

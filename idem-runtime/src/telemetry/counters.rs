//! The functions that count. Without the feature `metrics` they do nothing.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "metrics")]
use ::metrics::{Gauge, counter, gauge, histogram};

#[cfg(feature = "metrics")]
use super::metrics::*;
use crate::outcome::RefusalReason;

/// Whether anything is counted.
pub(crate) const ON: bool = cfg!(feature = "metrics");

/// A step of a store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Begin,
    Renew,
    Complete,
    Release,
    Forget,
    Inspect,
    Revoke,
}

/// Functions that count if the feature is on, and do nothing if it is off.
macro_rules! counted {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $ty:ty),*) $body:block)*) => {$(
        $(#[$attribute])*
        #[cfg(feature = "metrics")]
        pub(crate) fn $name($($argument: $ty),*) $body

        $(#[$attribute])*
        #[cfg(not(feature = "metrics"))]
        #[inline]
        pub(crate) fn $name($(_: $ty),*) {}
    )*};
}

counted! {
    /// Tells the recorder what each metric is.
    fn describe() {
        super::metrics::describe();
    }

    /// An execution has started.
    fn executed(endpoint: &Arc<str>) {
        counter!(EXECUTIONS, "endpoint" => Arc::clone(endpoint)).increment(1);
    }

    /// A request got a replay.
    fn replayed(endpoint: &Arc<str>) {
        counter!(REPLAYS, "endpoint" => Arc::clone(endpoint)).increment(1);
    }

    /// A request was refused.
    fn refused(endpoint: &Arc<str>, code: &'static str) {
        counter!(REFUSALS, "endpoint" => Arc::clone(endpoint), "code" => code).increment(1);
    }

    /// A handler runs without protection.
    fn unprotected(endpoint: &Arc<str>, reason: &'static str) {
        counter!(UNPROTECTED, "endpoint" => Arc::clone(endpoint), "reason" => reason).increment(1);
    }

    /// What would have happened to a request in shadow mode.
    fn shadow(endpoint: &Arc<str>, would: &'static str) {
        counter!(SHADOW, "endpoint" => Arc::clone(endpoint), "would" => would).increment(1);
    }

    /// A handler has returned its response.
    fn handler(endpoint: &Arc<str>, time: Duration) {
        histogram!(HANDLER, "endpoint" => Arc::clone(endpoint)).record(time);
    }

    /// A step of a store has ended.
    fn step(store: &'static str, operation: Operation, time: Duration) {
        histogram!(STORE, "store" => store, "operation" => operation.name()).record(time);
    }

    /// A step of a store has failed.
    fn step_failed(store: &'static str, operation: Operation) {
        counter!(STORE_ERRORS, "store" => store, "operation" => operation.name()).increment(1);
    }

    /// The store had no room for a new key.
    fn store_full() {
        counter!(ADMISSION_REFUSALS, "reason" => STORE_FULL).increment(1);
    }

    /// Too many executions were running for a new one.
    fn too_many_executions() {
        counter!(ADMISSION_REFUSALS, "reason" => TOO_MANY_EXECUTIONS).increment(1);
    }

    /// A request found an abandoned claim.
    fn abandoned() {
        counter!(ABANDONED).increment(1);
    }

    /// A claim could not be completed or released.
    fn completion_failed() {
        counter!(FAILED_COMPLETIONS).increment(1);
    }
}

#[cfg(feature = "metrics")]
impl Operation {
    const ALL: [Self; 7] =
        [Self::Begin, Self::Renew, Self::Complete, Self::Release, Self::Forget, Self::Inspect, Self::Revoke];

    fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Renew => "renew",
            Self::Complete => "complete",
            Self::Release => "release",
            Self::Forget => "forget",
            Self::Inspect => "inspect",
            Self::Revoke => "revoke",
        }
    }
}

/// Returns the name of a store's type, without an `Arc` around it, its path and its parameters.
pub(crate) fn name_of<S>() -> &'static str {
    // At each step of a store, so without a search for more than one character.
    let mut name = std::any::type_name::<S>();
    while let Some(inner) = name.strip_prefix("alloc::sync::Arc<") {
        name = inner;
    }
    let path = name.split('<').next().unwrap_or_default().trim_end_matches('>');
    path.rsplit(':').next().unwrap_or_default()
}

/// Starts the counters of a store's errors at zero.
pub(crate) fn store<S>() {
    #[cfg(feature = "metrics")]
    for operation in Operation::ALL {
        counter!(STORE_ERRORS, "store" => name_of::<S>(), "operation" => operation.name()).increment(0);
    }
}

impl RefusalReason {
    /// Counts the refusal of a new key for which there was no room, in `idempotency_admission_refusals_total`.
    pub(crate) fn count_if_full(&self) {
        match self {
            Self::StoreFull => store_full(),
            Self::TooManyExecutions => too_many_executions(),
            _ => {}
        }
    }
}

/// Counts one more in a gauge until it is dropped.
///
/// It keeps the gauge that it incremented, so that a recorder which is installed later never sees a decrement without its
/// increment.
pub(crate) struct GaugeGuard {
    #[cfg(feature = "metrics")]
    gauge: Gauge,
}

impl GaugeGuard {
    /// An execution that runs.
    pub(crate) fn in_flight() -> Self {
        #[cfg(feature = "metrics")]
        return Self::of(gauge!(IN_FLIGHT));
        #[cfg(not(feature = "metrics"))]
        Self {}
    }

    /// A request that waits for another request's execution.
    pub(crate) fn waiting() -> Self {
        #[cfg(feature = "metrics")]
        return Self::of(gauge!(WAITERS));
        #[cfg(not(feature = "metrics"))]
        Self {}
    }

    #[cfg(feature = "metrics")]
    fn of(gauge: Gauge) -> Self {
        gauge.increment(1);
        Self { gauge }
    }
}

#[cfg(feature = "metrics")]
impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.decrement(1);
    }
}

//! Where things are counted. Without the feature `metrics` nothing is left of it.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "metrics")]
use ::metrics::{Gauge, counter, gauge, histogram};

#[cfg(feature = "metrics")]
use crate::metrics::*;

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
}

/// Functions that count where the feature is on, and do nothing where it is off.
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
        crate::metrics::describe();
    }

    /// A body has started under a claim.
    fn executed(endpoint: &Arc<str>) {
        counter!(EXECUTIONS, "endpoint" => Arc::clone(endpoint)).increment(1);
    }

    /// A record has answered a request.
    fn replayed(endpoint: &Arc<str>) {
        counter!(REPLAYS, "endpoint" => Arc::clone(endpoint)).increment(1);
    }

    /// A request was refused.
    fn refused(endpoint: &Arc<str>, code: &'static str) {
        counter!(REFUSALS, "endpoint" => Arc::clone(endpoint), "code" => code).increment(1);
    }

    /// A body runs without protection.
    fn unprotected(endpoint: &Arc<str>, reason: &'static str) {
        counter!(UNPROTECTED, "endpoint" => Arc::clone(endpoint), "reason" => reason).increment(1);
    }

    /// What would have happened to a request in shadow mode.
    fn shadow(endpoint: &Arc<str>, would: &'static str) {
        counter!(SHADOW, "endpoint" => Arc::clone(endpoint), "would" => would).increment(1);
    }

    /// A body has answered.
    fn body(endpoint: &Arc<str>, time: Duration) {
        histogram!(BODY, "endpoint" => Arc::clone(endpoint)).record(time);
    }

    /// A step of a store is over.
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

    /// There was no place for a new execution.
    fn too_many_executions() {
        counter!(ADMISSION_REFUSALS, "reason" => TOO_MANY_EXECUTIONS).increment(1);
    }

    /// A request came upon a claim whose owner is gone.
    fn abandoned() {
        counter!(ABANDONED).increment(1);
    }

    /// The end of a claim could not be recorded for good.
    fn completion_failed() {
        counter!(FAILED_COMPLETIONS).increment(1);
    }
}

#[cfg(feature = "metrics")]
impl Operation {
    const ALL: [Self; 6] = [Self::Begin, Self::Renew, Self::Complete, Self::Release, Self::Forget, Self::Inspect];

    fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Renew => "renew",
            Self::Complete => "complete",
            Self::Release => "release",
            Self::Forget => "forget",
            Self::Inspect => "inspect",
        }
    }
}

/// The name of a store's type, without its path and its parameters.
pub(crate) fn name_of<S>() -> &'static str {
    let path = std::any::type_name::<S>().split('<').next().unwrap_or_default();
    path.rsplit("::").next().unwrap_or_default()
}

/// An engine takes a store into use: the counters of its errors begin at zero.
pub(crate) fn store<S>(_: &S) {
    #[cfg(feature = "metrics")]
    for operation in Operation::ALL {
        counter!(STORE_ERRORS, "store" => name_of::<S>(), "operation" => operation.name()).increment(0);
    }
}

/// One more in a gauge, until it is dropped.
///
/// It keeps the gauge that it found, so that a recorder which is installed meanwhile never sees one go that it has not
/// seen come.
pub(crate) struct OneMore {
    #[cfg(feature = "metrics")]
    gauge: Gauge,
}

impl OneMore {
    /// An execution that runs.
    pub(crate) fn in_flight() -> Self {
        #[cfg(feature = "metrics")]
        return Self::of(gauge!(IN_FLIGHT));
        #[cfg(not(feature = "metrics"))]
        Self {}
    }

    /// A request that waits for somebody else's execution.
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
impl Drop for OneMore {
    fn drop(&mut self) {
        self.gauge.decrement(1);
    }
}

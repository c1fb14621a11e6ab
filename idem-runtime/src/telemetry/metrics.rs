//! The metrics: every name, what it counts, and the functions that count.
//!
//! They go through the [`metrics`](https://docs.rs/metrics) facade, behind the feature `metrics`; without it nothing of this
//! is compiled. Install a recorder, say that of `metrics-exporter-prometheus`, before the engine is built, or call [`describe`]
//! once it is there:
//!
//! ```
//! // metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
//! idem_runtime::metrics::describe();
//! ```
//!
//! | metric | kind | labels | what it counts |
//! |---|---|---|---|
//! | `idempotency_executions_total` | counter | `endpoint` | executions that started |
//! | `idempotency_replays_total` | counter | `endpoint` | requests that got a replay |
//! | `idempotency_refusals_total` | counter | `endpoint`, `code` | requests that the runtime refused; also executions whose caller got a refusal after all, since the handler panicked, say |
//! | `idempotency_unprotected_total` | counter | `endpoint`, `reason` | handlers that ran without protection: `key_missing` if the key is optional, or `store_unavailable` if the policy allows it |
//! | `idempotency_shadow_total` | counter | `endpoint`, `would` | requests to endpoints in shadow mode, by what would have happened: `execute`, `replay`, `wait`, `reject`, `unread`, or the code of a refusal |
//! | `idempotency_handler_seconds` | histogram | `endpoint` | time from the start of a handler to its response; not in shadow mode, and not without a key |
//! | `idempotency_executions_in_flight` | gauge | | executions that run now, including those that are still being recorded; not those in shadow mode |
//! | `idempotency_waiters` | gauge | | requests that wait now for another request's execution |
//! | `idempotency_store_seconds` | histogram | `store`, `operation` | time that one step of the store took; not of `run_in`, whose steps are statements of its caller |
//! | `idempotency_store_errors_total` | counter | `store`, `operation` | steps of the store that failed, panicked, or got no reply in time; a full store and a lost claim are no failures |
//! | `idempotency_admission_refusals_total` | counter | `reason` | new keys that were refused because there was no room: `store_full` or `too_many_executions` |
//! | `idempotency_abandoned_claims_total` | counter | | requests that found an abandoned claim |
//! | `idempotency_failed_completions_total` | counter | | claims that could not be completed or released |
//! | `idempotency_memory_entries` | gauge | | keys that the process's memory stores hold |
//! | `idempotency_memory_bytes` | gauge | | bytes that they hold, by their own account |
//! | `idempotency_memory_expiry_lag_seconds` | gauge | | how long the oldest expired record in them has been waiting to be removed |
//!
//! `endpoint` is what the adapter calls the endpoint when it opens an [`RequestSpan`](crate::RequestSpan): method and route
//! template, and never what a client chose; `unknown` if the engine runs without one. `store` is the name of the store's type,
//! `operation` one of `begin`, `renew`, `complete`, `release`, `forget`, `inspect` and `revoke`, `code` that of the refusal.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Times, in seconds.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub description: &'static str,
}

/// The values of `reason`.
pub(crate) const STORE_FULL: &str = "store_full";
pub(crate) const TOO_MANY_EXECUTIONS: &str = "too_many_executions";

/// Each metric as a constant, and all of them in a list.
macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $description:literal;)*) => {
        $(pub(crate) const $constant: &str = $name;)*

        /// All metrics.
        pub const ALL: &[Metric] = &[$(
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], description: $description }
        ),*];
    };
}

metrics! {
    EXECUTIONS = Counter "idempotency_executions_total" ["endpoint"]
        "Executions that started";
    REPLAYS = Counter "idempotency_replays_total" ["endpoint"]
        "Requests that got a replay";
    REFUSALS = Counter "idempotency_refusals_total" ["endpoint", "code"]
        "Requests that the runtime refused";
    UNPROTECTED = Counter "idempotency_unprotected_total" ["endpoint", "reason"]
        "Handlers that ran without protection";
    SHADOW = Counter "idempotency_shadow_total" ["endpoint", "would"]
        "Requests to endpoints in shadow mode, by what would have happened";
    HANDLER = Histogram "idempotency_handler_seconds" ["endpoint"]
        "Time from the start of a handler to its response";
    IN_FLIGHT = Gauge "idempotency_executions_in_flight" []
        "Executions that run now";
    WAITERS = Gauge "idempotency_waiters" []
        "Requests that wait now for another request's execution";
    STORE = Histogram "idempotency_store_seconds" ["store", "operation"]
        "Time that one step of the store took";
    STORE_ERRORS = Counter "idempotency_store_errors_total" ["store", "operation"]
        "Steps of the store that failed";
    ADMISSION_REFUSALS = Counter "idempotency_admission_refusals_total" ["reason"]
        "New keys that were refused because there was no room";
    ABANDONED = Counter "idempotency_abandoned_claims_total" []
        "Requests that found an abandoned claim";
    FAILED_COMPLETIONS = Counter "idempotency_failed_completions_total" []
        "Claims that could not be completed or released";
    MEMORY_ENTRIES = Gauge "idempotency_memory_entries" []
        "Keys that the process's memory stores hold";
    MEMORY_BYTES = Gauge "idempotency_memory_bytes" []
        "Bytes that the process's memory stores hold, by their own account";
    MEMORY_EXPIRY_LAG = Gauge "idempotency_memory_expiry_lag_seconds" []
        "How long the oldest expired record has been waiting to be removed";
}

/// Tells the recorder what each metric is, and lets those begin at zero whose labels are known: a counter that is missing
/// until something goes wrong cannot be watched. Building an engine does it as well.
pub fn describe() {
    for Metric { name, kind, description, .. } in ALL.iter().copied() {
        match kind {
            Kind::Counter => describe_counter!(name, description),
            Kind::Gauge => describe_gauge!(name, description),
            Kind::Histogram => describe_histogram!(name, Unit::Seconds, description),
        }
    }
    for name in [ABANDONED, FAILED_COMPLETIONS] {
        counter!(name).increment(0);
    }
    for reason in [STORE_FULL, TOO_MANY_EXECUTIONS] {
        counter!(ADMISSION_REFUSALS, "reason" => reason).increment(0);
    }
    for name in [IN_FLIGHT, WAITERS] {
        gauge!(name).increment(0);
    }
}

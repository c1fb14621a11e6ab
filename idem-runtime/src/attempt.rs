//! What goes into the engine: a request with a key, and the part of its policy that the engine needs.

use std::time::Duration;

use crate::endpoint::{Endpoint, PolicyTag};
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::trace::TraceParent;

/// A request as the engine sees it. Storage key and fingerprint are computed once, and carried to the end.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// Namespace, scope and key.
    pub key: StorageKey,
    /// What must be equal on a retry.
    pub fingerprint: Fingerprint,
    /// The endpoint's rules.
    pub rules: Rules,
    /// The tag of the endpoint's policy.
    pub policy: PolicyTag,
    /// The endpoint, for operators.
    pub endpoint: Endpoint,
    /// The trace of the request, for operators.
    pub trace: Option<TraceParent>,
}

impl Attempt {
    /// Makes an attempt on a key, at an endpoint without a name.
    pub const fn new(key: StorageKey, fingerprint: Fingerprint, rules: Rules) -> Self {
        Self { key, fingerprint, rules, policy: PolicyTag::NONE, endpoint: Endpoint::UNKNOWN, trace: None }
    }

    /// Returns the same attempt, at this endpoint.
    #[must_use]
    pub const fn at(self, endpoint: Endpoint) -> Self {
        Self { endpoint, ..self }
    }

    /// Returns the same attempt, within this trace.
    #[must_use]
    pub const fn within(self, trace: Option<TraceParent>) -> Self {
        Self { trace, ..self }
    }

    /// Returns the same attempt, under the policy with this tag.
    #[must_use]
    pub const fn under(self, policy: PolicyTag) -> Self {
        Self { policy, ..self }
    }
}

/// What the engine needs of a policy. The rest of a policy concerns the protocol of the adapter: headers, statuses, and what
/// of a response is recorded.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::{Abandoned, Rules};
///
/// let rules = Rules { ttl: Duration::from_secs(48 * 60 * 60), wait: Some(Duration::from_secs(5)), ..Rules::DEFAULT };
/// assert_eq!(rules.abandoned, Abandoned::Refuse);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long a record lives, counted from completion.
    pub ttl: Duration,
    /// How long a request waits for an execution in flight under its key before it is refused. `None` refuses at once,
    /// and so does an async runtime without a time driver.
    pub wait: Option<Duration>,
    /// What a request gets if its key is held by a claim without an owner.
    pub abandoned: Abandoned,
    /// Runs the handler **without protection** if the store is unavailable. Only for handlers that do less harm twice than not
    /// at all.
    pub run_without_store: bool,
}

impl Rules {
    /// 24 hours, no waiting, no second run after a crash, and no run without a store.
    pub const DEFAULT: Self = Self {
        ttl: Duration::from_secs(24 * 60 * 60),
        wait: None,
        abandoned: Abandoned::Refuse,
        run_without_store: false,
    };
}

impl Default for Rules {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a retry gets if the owner of the claim disappeared and the outcome of its execution is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abandoned {
    /// Refuse, since the handler may have had effects. At most one run.
    #[default]
    Refuse,
    /// Run the handler again. For handlers that are safe to run twice: at least one run, perhaps more. An owner that was only
    /// slow may learn from the store that another run has taken over its claim. Its client is then told that the outcome is
    /// unknown, and a retry gets the response that everyone gets.
    Rerun,
}

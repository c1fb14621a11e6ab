//! The part of a policy that the engine needs.

use std::time::Duration;

/// What the engine needs of a policy. The rest of a policy concerns the protocol of the adapter: headers, statuses,
/// and what of an answer is recorded.
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
    /// How long a request waits for an execution in flight under its key before it is refused. `None` refuses at once.
    pub wait: Option<Duration>,
    /// What a request gets whose key is held by a claim without an owner.
    pub abandoned: Abandoned,
}

impl Rules {
    /// 24 hours, no waiting, and no second run after a crash.
    pub const DEFAULT: Self = Self { ttl: Duration::from_secs(24 * 60 * 60), wait: None, abandoned: Abandoned::Refuse };
}

impl Default for Rules {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a retry gets when the owner of the claim is gone and the outcome of its execution unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abandoned {
    /// Refuse: the body may have had effects, and nobody knows which. At most one run.
    #[default]
    Refuse,
    /// Run the body again. For bodies that are safe to run twice: at least one run, perhaps more. An owner that was only slow
    /// and learns from the store that another run has taken its claim over does not answer its client, who is told that
    /// the outcome is unknown: a retry gets the answer that everybody gets.
    Rerun,
}

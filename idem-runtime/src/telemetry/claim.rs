//! The steps of a claim, as events. With the span of the request they tell the story of a key.

use crate::key::StorageKey;

/// A step that the store has confirmed.
#[derive(Clone, Copy)]
pub(crate) enum ClaimStep {
    /// The key was free, and has a claim now.
    Granted,
    /// An abandoned claim has a new owner.
    TakenOver,
    /// The claim has become a record.
    Completed,
    /// The key is free again.
    Released,
}

impl ClaimStep {
    pub(crate) fn report(self, key: &StorageKey) {
        let claim = match self {
            Self::Granted => "granted",
            Self::TakenOver => "taken_over",
            Self::Completed => "completed",
            Self::Released => "released",
        };
        tracing::debug!(%key, claim, "a step of a claim");
    }
}

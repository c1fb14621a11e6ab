//! Warnings that a layer logs once for each endpoint.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::policy::Policy;

/// What an endpoint was warned of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Warning {
    /// A caller was known by its cookie alone.
    Cookie,
    /// A response varies with a header that the key is not bound to.
    Vary,
}

/// A warning, and the tag of the endpoint's policy.
type Logged = (Warning, [u8; 8]);

/// The warnings that a layer has logged. There are no more endpoints than handlers.
#[derive(Clone, Default)]
pub(crate) struct Warnings(Arc<Mutex<BTreeSet<Logged>>>);

impl Warnings {
    /// Returns whether the endpoint was not warned of this before.
    pub(crate) fn is_first(&self, warning: Warning, policy: &Policy) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((warning, policy.tag.to_bytes()))
    }
}

//! How many bodies run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::counted::OneMore;

/// The places for executions.
pub(crate) struct Places {
    most: usize,
    taken: AtomicUsize,
}

/// One place, given back and counted off when it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    _counted: OneMore,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: AtomicUsize::new(0) }
    }

    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let free = |taken: usize| Some(taken + 1).filter(|&taken| taken <= self.most);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(Place { places: Arc::clone(self), _counted: OneMore::in_flight() })
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

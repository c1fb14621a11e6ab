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
    /// `None` for an execution in shadow mode.
    _counted: Option<OneMore>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: AtomicUsize::new(0) }
    }

    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        self.count_one().then(|| Place { places: Arc::clone(self), _counted: Some(OneMore::in_flight()) })
    }

    /// A place that no gauge counts.
    pub(super) fn take_uncounted(self: &Arc<Self>) -> Option<Place> {
        self.count_one().then(|| Place { places: Arc::clone(self), _counted: None })
    }

    fn count_one(&self) -> bool {
        let free = |taken: usize| Some(taken + 1).filter(|&taken| taken <= self.most);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok()
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

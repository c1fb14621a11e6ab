//! The quota: `max_entries` and `max_bytes`, how much of them is used, and the permits that count against them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::AtomicUsize;

/// What one key is charged apart from the bytes of its record: moka's entry and its share of the tables. These are 431 allocated bytes
/// with a million keys and 489 with 100,000 (BENCHMARKS.md, less the record of 150 bytes). With fewer keys the tables take a larger
/// share, and the allocator adds to all of it.
pub(super) const KEY_BYTES: usize = 640;

/// What requests may fill within a second or two, in a store of any size.
const FEW_ENTRIES: usize = 8192;
const FEW_BYTES: usize = 64 * 1024 * 1024;

/// How much may be held at once, and how much is.
pub(super) struct Quota {
    max_entries: usize,
    max_bytes: usize,
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Quota {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { max_entries, max_bytes, entries: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// Returns a permit for one more key, without a record yet. `None` if there is no room.
    pub(super) fn admit(self: &Arc<Self>) -> Option<QuotaPermit> {
        if !take(&self.entries, 1, self.max_entries) {
            return None;
        }
        if !take(&self.bytes, KEY_BYTES, self.max_bytes) {
            self.entries.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(QuotaPermit { quota: Arc::clone(self), bytes: KEY_BYTES })
    }

    /// Returns a permit for one more key, even if there is no room. Only for what an operator does.
    pub(super) fn admit_beyond_limits(self: &Arc<Self>) -> QuotaPermit {
        self.entries.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(KEY_BYTES, Ordering::AcqRel);
        QuotaPermit { quota: Arc::clone(self), bytes: KEY_BYTES }
    }

    /// Returns whether a new key would be refused.
    pub(super) fn is_full(&self) -> bool {
        self.entries() >= self.max_entries || self.bytes().saturating_add(KEY_BYTES) > self.max_bytes
    }

    /// Returns whether new keys may soon fill the store.
    pub(super) fn is_nearly_full(&self) -> bool {
        let is_little = |held: usize, max: usize, little: usize| max.saturating_sub(held) < little.max(max / 8);
        is_little(self.entries(), self.max_entries, FEW_ENTRIES) || is_little(self.bytes(), self.max_bytes, FEW_BYTES)
    }

    pub(super) fn entries(&self) -> usize {
        self.entries.load(Ordering::Acquire)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }
}

fn take(counter: &AtomicUsize, amount: usize, max: usize) -> bool {
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| held.checked_add(amount).filter(|&sum| sum <= max))
        .is_ok()
}

/// The right to hold one key and some bytes. Dropping it releases both, so the quota cannot drift.
pub(super) struct QuotaPermit {
    quota: Arc<Quota>,
    bytes: usize,
}

impl QuotaPermit {
    /// Adds `bytes` to the permit. Returns `false`, and adds nothing, if there is no room for them.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let grown = take(&self.quota.bytes, bytes, self.quota.max_bytes);
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        self.quota.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.quota.entries.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for QuotaPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuotaPermit({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_stop_at_the_limits_and_release_everything() {
        let quota = Arc::new(Quota::new(2, 2 * KEY_BYTES + 10));
        let mut first = quota.admit().unwrap();
        assert!(!quota.is_full());
        let second = quota.admit().unwrap();
        assert!(quota.admit().is_none() && quota.is_full(), "entries");
        assert!(first.grow(10));
        assert!(!first.grow(1), "bytes");
        drop(second);
        assert_eq!((quota.entries(), quota.bytes()), (1, KEY_BYTES + 10));
        drop(first);
        assert_eq!((quota.entries(), quota.bytes()), (0, 0));
    }

    #[test]
    fn the_last_key_that_fits_is_admitted() {
        let quota = Arc::new(Quota::new(10, 2 * KEY_BYTES));
        let _first = quota.admit().unwrap();
        assert!(!quota.is_full());
        let _last = quota.admit().unwrap();
        assert!(quota.is_full());
    }

    #[test]
    fn a_store_is_nearly_full_if_little_is_left_of_either_limit() {
        let held = |max_entries, max_bytes, entries, bytes: usize| {
            let quota = Quota::new(max_entries, max_bytes);
            quota.entries.store(entries, Ordering::Release);
            quota.bytes.store(bytes, Ordering::Release);
            quota.is_nearly_full()
        };
        assert!(held(FEW_ENTRIES, usize::MAX, 1, 0) && held(usize::MAX, FEW_BYTES, 0, 1), "small stores always are");
        assert!(!held(1_000_000, usize::MAX, 875_000, 0) && held(1_000_000, usize::MAX, 875_001, 0));
        assert!(!held(usize::MAX, 1 << 30, 0, 7 << 27) && held(usize::MAX, 1 << 30, 0, (7 << 27) + 1));
    }

    #[test]
    fn a_refused_admission_costs_nothing() {
        let quota = Arc::new(Quota::new(10, KEY_BYTES - 1));
        assert!(quota.admit().is_none() && quota.is_full());
        assert_eq!((quota.entries(), quota.bytes()), (0, 0));
    }
}

//! The account of what the store holds, and the permits that draw on it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::AtomicUsize;

/// What one key costs apart from its answer: its share of the shard's table and of the expiries, measured with up to three
/// million keys, where a table has just grown, and rounded up.
pub(super) const KEY_BYTES: usize = 384;

/// How much may live at once, and how much does.
pub(super) struct Account {
    max_entries: usize,
    max_bytes: usize,
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

impl Account {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { max_entries, max_bytes, entries: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// A permit for one more key, without an answer yet.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Permit> {
        if !take(&self.entries, 1, self.max_entries) {
            return None;
        }
        if !take(&self.bytes, KEY_BYTES, self.max_bytes) {
            self.entries.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Permit { account: Arc::clone(self), bytes: KEY_BYTES })
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

/// The right to keep one key and some bytes. Dropping it gives both back, so the account cannot drift.
pub(super) struct Permit {
    account: Arc<Account>,
    bytes: usize,
}

impl Permit {
    /// Adds `bytes` to the permit, where there is room for them.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let grown = take(&self.account.bytes, bytes, self.account.max_bytes);
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.account.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.account.entries.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_stop_at_the_limits_and_give_everything_back() {
        let account = Arc::new(Account::new(2, 2 * KEY_BYTES + 10));
        let mut first = account.admit().unwrap();
        let second = account.admit().unwrap();
        assert!(account.admit().is_none(), "entries");
        assert!(first.grow(10));
        assert!(!first.grow(1), "bytes");
        drop(second);
        assert_eq!((account.entries(), account.bytes()), (1, KEY_BYTES + 10));
        drop(first);
        assert_eq!((account.entries(), account.bytes()), (0, 0));
    }

    #[test]
    fn a_refused_admission_costs_nothing() {
        let account = Arc::new(Account::new(10, KEY_BYTES - 1));
        assert!(account.admit().is_none());
        assert_eq!((account.entries(), account.bytes()), (0, 0));
    }
}

//! Sets of statuses, computed at compile time.

use std::fmt;

use super::validate::{self, require};

/// A set of status codes, 200 to 999. It cannot hold 1xx: those are never recorded. HTTP defines none from 600 on, so they are
/// in no set but [`ALL`](Self::ALL), and none of them can be named alone.
///
/// ```
/// use idem_axum::Statuses;
///
/// const KEPT: Statuses = Statuses::ALL.minus(Statuses::of(400)).minus(Statuses::of(422));
/// assert!(KEPT.contains(201) && KEPT.contains(500) && !KEPT.contains(422));
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use = "a set of statuses has no effect until a policy names it"]
pub struct Statuses([u64; WORDS]);

const WORDS: usize = 16;

impl Statuses {
    /// No status.
    pub const NONE: Self = Self([0; WORDS]);
    /// 200 to 999.
    pub const ALL: Self = Self::range(200, 999);
    /// 2xx.
    pub const SUCCESS: Self = Self::range(200, 299);
    /// 3xx.
    pub const REDIRECT: Self = Self::range(300, 399);
    /// 4xx.
    pub const CLIENT_ERROR: Self = Self::range(400, 499);
    /// 5xx.
    pub const SERVER_ERROR: Self = Self::range(500, 599);

    /// Those whose responses have no body by RFC 9110, and so no header about one.
    pub(crate) const BODILESS: Self = Self::of(204).plus(Self::of(205)).plus(Self::of(304));
    /// Those of them that servers send without the body that a response has nevertheless: hyper sends that of a 205.
    pub(crate) const CUT: Self = Self::BODILESS.minus(Self::of(205));

    /// One status.
    ///
    /// # Panics
    /// If it is not between 200 and 599.
    pub const fn of(status: u16) -> Self {
        require(validate::final_status(status));
        Self::range(status, status)
    }

    /// Returns the union of two sets.
    pub const fn plus(mut self, other: Self) -> Self {
        let mut word = 0;
        while word < WORDS {
            self.0[word] |= other.0[word];
            word += 1;
        }
        self
    }

    /// Returns these without those.
    pub const fn minus(mut self, other: Self) -> Self {
        let mut word = 0;
        while word < WORDS {
            self.0[word] &= !other.0[word];
            word += 1;
        }
        self
    }

    /// Returns whether `status` is among these.
    #[must_use]
    pub const fn contains(&self, status: u16) -> bool {
        let word = (status / 64) as usize;
        word < WORDS && self.0[word] & (1 << (status % 64)) != 0
    }

    /// Returns whether there is no status among these.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        let mut word = 0;
        while word < WORDS && self.0[word] == 0 {
            word += 1;
        }
        word == WORDS
    }

    const fn range(first: u16, last: u16) -> Self {
        let mut set = Self::NONE;
        let mut status = first;
        while status <= last {
            set.0[(status / 64) as usize] |= 1 << (status % 64);
            status += 1;
        }
        set
    }
}

impl fmt::Debug for Statuses {
    /// As ranges: `{200..=399, 404}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        let mut statuses = (200..1000_u16).filter(|&status| self.contains(status)).peekable();
        while let Some(first) = statuses.next() {
            let mut last = first;
            while let Some(next) = statuses.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                set.entry(&first)
            } else {
                set.entry(&(first..=last))
            };
        }
        set.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_differences_read_left_to_right() {
        let kept = Statuses::SUCCESS.plus(Statuses::CLIENT_ERROR).minus(Statuses::of(400)).plus(Statuses::of(503));
        let wanted = |status: u16| (200..300).contains(&status) || (401..500).contains(&status) || status == 503;
        assert!((0..=u16::MAX).all(|status| kept.contains(status) == wanted(status)));
        assert_eq!(format!("{kept:?}"), "{200..=299, 401..=499, 503}");
    }

    #[test]
    fn all_has_every_final_status_and_no_interim_one() {
        assert!((200..=999).all(|status| Statuses::ALL.contains(status)));
        assert!(!Statuses::ALL.contains(101) && !Statuses::ALL.contains(199) && !Statuses::ALL.contains(1000));
    }
}

//! Chance that a seed repeats: SplitMix64.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Numbers that depend on the seed alone, if there is one.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice for one use under a seed; other uses do not disturb them.
    pub fn new(seed: u64, used_for: &str) -> Self {
        let mut dice = Self(seed);
        for byte in used_for.bytes() {
            dice.0 = dice.roll() ^ u64::from(byte);
        }
        dice
    }

    /// Dice that roll otherwise each time, if a run must not be the same as another.
    pub fn unseeded() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.roll() % (range.end() - range.start() + 1)
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.within(0..=99) < percent
    }

    pub fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let last = of.len() as u64 - 1;
        of[usize::try_from(self.within(0..=last)).unwrap_or_default()]
    }
}

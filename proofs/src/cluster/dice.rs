//! Chance, where a run must not be the same each time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// A random number.
pub fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A random number below `sides`.
pub fn roll(sides: u64) -> u64 {
    number() % sides
}

/// A random time of less than so many milliseconds.
pub fn milliseconds(below: u64) -> Duration {
    Duration::from_micros(roll(below * 1000))
}

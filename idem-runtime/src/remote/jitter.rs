//! Pauses that processes do not take at the same time.

use std::time::Duration;

/// Returns a random duration between half of `pause` and all of it, so that processes that failed together do not try again
/// together.
///
/// ```
/// use std::time::Duration;
/// use idem_runtime::remote::jitter;
///
/// let pause = jitter(Duration::from_secs(2));
/// assert!(pause >= Duration::from_secs(1) && pause <= Duration::from_secs(2));
/// ```
pub fn jitter(pause: Duration) -> Duration {
    let mut random = [u8::MAX];
    // Without random bytes the pauses are equal, which is only slower.
    let _ = getrandom::fill(&mut random);
    let half = pause / 2;
    half + half / u32::from(u8::MAX) * u32::from(random[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_between_half_and_all_even_of_the_longest() {
        for pause in [Duration::ZERO, Duration::from_millis(10), Duration::MAX] {
            for _ in 0..100 {
                assert!(jitter(pause) >= pause / 2 && jitter(pause) <= pause);
            }
        }
        let half_way = Duration::from_secs(45);
        let is_longer = |_| jitter(Duration::from_secs(60)) > half_way;
        assert!((0..200).any(is_longer) && !(0..200).all(is_longer));
    }
}

//! One at a time, but never behind one that is not polled.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// A lock for work that ends within a known time if it is polled. A holder that takes longer is not polled, and loses its turn: the
/// runtime of its task is blocked, or its future was set aside.
pub(crate) struct Turns(Mutex<Current>);

struct Current {
    turn: Arc<tokio::sync::Mutex<()>>,
    since: Instant,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Current { turn: Arc::default(), since: Instant::now() }))
    }

    /// Waits for its turn, in which it takes no longer than `longest`.
    pub(crate) async fn take(&self, longest: Duration) -> OwnedMutexGuard<()> {
        let turn = self.with(|current| {
            if current.since.elapsed() > longest && current.turn.try_lock().is_err() {
                *current = Current { turn: Arc::default(), since: Instant::now() };
            }
            Arc::clone(&current.turn)
        });
        let guard = turn.lock_owned().await;
        self.with(|current| current.since = Instant::now());
        guard
    }

    fn with<T>(&self, change: impl FnOnce(&mut Current) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_next_turn_begins_when_the_one_before_has_taken_longer_than_it_may() {
        let (turns, longest) = (Turns::new(), Duration::from_secs(1));
        let held = turns.take(longest).await;
        timeout(longest / 2, turns.take(longest)).await.unwrap_err();
        advance(longest).await;
        let next = timeout(longest, turns.take(longest)).await.unwrap();
        timeout(longest / 2, turns.take(longest)).await.unwrap_err();
        drop((held, next));
    }
}

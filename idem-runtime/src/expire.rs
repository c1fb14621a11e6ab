//! Expiry for stores that do not judge it themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::engine::Attempt;
use crate::erased::{ErasedStore, Granted};
use crate::key::StorageKey;
use crate::origin::Origin;
use crate::store::{Begin, StoreError};

/// How often an expired record is asked to go.
const TRIES: usize = 3;

/// Turns an expired record into a free key.
///
/// Asking, forgetting and asking again are three steps, so they happen under a mutex of the key: otherwise a second
/// request, late with its forgetting, could forget the record that the first one has made meanwhile. Every `begin` takes
/// the mutex, since a store may give an expired record's place away by itself.
#[derive(Default)]
pub(crate) struct Expirer {
    keys: Lock<HashMap<StorageKey, Arc<Mutex<()>>>>,
}

/// Somebody who is at a key, or waits to be; the last one to leave takes the mutex away.
struct Visit<'a> {
    expirer: &'a Expirer,
    key: StorageKey,
    mutex: Option<Arc<Mutex<()>>>,
}

impl<'a> Visit<'a> {
    fn new(expirer: &'a Expirer, key: StorageKey) -> Self {
        let mut keys = expirer.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mutex = Some(Arc::clone(keys.entry(key).or_default()));
        Self { expirer, key, mutex }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut keys = self.expirer.keys.lock().unwrap_or_else(PoisonError::into_inner);
        self.mutex = None;
        if keys.get(&self.key).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            keys.remove(&self.key);
        }
    }
}

impl Expirer {
    pub(crate) async fn begin(
        &self,
        store: &Arc<dyn ErasedStore>,
        clock: &dyn Clock,
        attempt: Attempt,
        lease: Duration,
        origin: Option<Origin>,
    ) -> Result<Begin<Granted>, StoreError> {
        let key = attempt.key;
        let visit = Visit::new(self, key);
        let _alone = match &visit.mutex {
            Some(mutex) => Some(mutex.lock().await),
            None => None,
        };
        for _ in 0..TRIES {
            let begun = Arc::clone(store).begin(attempt, lease, origin.clone()).await?;
            let Begin::Completed(record) = &begun else { return Ok(begun) };
            match record.read() {
                Ok(content) if content.expires_at <= clock.now() => {
                    Arc::clone(store).forget(key).await?;
                }
                // Not expired, or not readable, which the engine refuses.
                _ => return Ok(begun),
            }
        }
        Err(StoreError::unavailable("the store keeps an expired record that it was asked to forget"))
    }

    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

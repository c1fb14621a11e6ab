//! Expiry for stores that do not judge it themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::engine::Attempt;
use crate::erased::{BoxClaim, ErasedStore};
use crate::store::{Begin, StoreError};

/// How many keys are begun at the same time at most.
const STRIPES: usize = 256;

/// Turns an expired record into a free key.
///
/// Asking, forgetting and asking again are three steps, so they happen under a mutex of the key: otherwise a second
/// request, late with its forgetting, could forget the record that the first one has made meanwhile. Every `begin` takes
/// the mutex, since a store may give an expired record's place away by itself.
pub(crate) struct Expirer(Vec<Mutex<()>>);

impl Expirer {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    pub(crate) async fn begin(
        &self,
        store: &Arc<dyn ErasedStore>,
        clock: &dyn Clock,
        attempt: Attempt,
        lease: Duration,
    ) -> Result<Begin<BoxClaim>, StoreError> {
        let Attempt { key, fingerprint, .. } = attempt;
        let _alone = self.0[usize::from(key.as_bytes()[0]) % STRIPES].lock().await;
        loop {
            let begun = Arc::clone(store).begin(key, fingerprint, lease).await?;
            let Begin::Completed(record) = &begun else { return Ok(begun) };
            match record.read() {
                Ok(content) if content.expires_at <= clock.now() => {
                    Arc::clone(store).forget(key).await?;
                }
                // Not expired, or not readable, which the engine refuses.
                _ => return Ok(begun),
            }
        }
    }
}

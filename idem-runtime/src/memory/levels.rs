//! What the memory stores of this process hold, as metrics: written by their janitors, once a round.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ::metrics::gauge;

use super::Shards;
use crate::metrics::{MEMORY_BYTES, MEMORY_ENTRIES, MEMORY_EXPIRY_LAG};

/// All stores, since a gauge has one value for the process.
static STORES: Mutex<Vec<Weak<Shards>>> = Mutex::new(Vec::new());

/// One more store.
pub(super) fn enter(shards: &Arc<Shards>) {
    STORES.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(shards));
}

/// Writes what all of them hold.
pub(super) fn publish() {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.retain(|shards| shards.strong_count() > 0);
    let stores: Vec<Arc<Shards>> = stores.iter().filter_map(Weak::upgrade).collect();
    let sum = |of: fn(&Shards) -> usize| stores.iter().map(|shards| of(shards) as f64).sum::<f64>();
    gauge!(MEMORY_ENTRIES).set(sum(|shards| shards.account.entries()));
    gauge!(MEMORY_BYTES).set(sum(|shards| shards.account.bytes()));
    let lag = stores.iter().map(|shards| shards.expiry_lag()).max();
    gauge!(MEMORY_EXPIRY_LAG).set(lag.unwrap_or_default());
}

impl Shards {
    /// How long the oldest expired record has been over.
    fn expiry_lag(&self) -> Duration {
        let soonest = self.all.iter().map(|shard| shard.soonest().as_nanos()).min().unwrap_or(u64::MAX);
        Duration::from_nanos(self.now().as_nanos().saturating_sub(soonest))
    }
}

//! What the memory stores of this process hold, as metrics: written by their janitors, once a round.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ::metrics::gauge;

use super::{Shared, records};
use crate::clock::Timestamp;
use crate::telemetry::metrics::{MEMORY_BYTES, MEMORY_ENTRIES, MEMORY_EXPIRY_LAG};

/// All stores, since a gauge has one value for the process.
static STORES: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// Adds a store.
pub(super) fn enter(shared: &Arc<Shared>) {
    STORES.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(shared));
}

/// Writes what all of them hold.
pub(super) fn publish() {
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.retain(|shared| shared.strong_count() > 0);
    let stores: Vec<Arc<Shared>> = stores.iter().filter_map(Weak::upgrade).collect();
    let sum = |of: fn(&Shared) -> usize| stores.iter().map(|shared| of(shared) as f64).sum::<f64>();
    gauge!(MEMORY_ENTRIES).set(sum(|shared| shared.quota.entries()));
    gauge!(MEMORY_BYTES).set(sum(|shared| shared.quota.bytes()));
    let lag = stores.iter().map(|shared| shared.expiry_lag()).max();
    gauge!(MEMORY_EXPIRY_LAG).set(lag.unwrap_or_default());
}

impl Shared {
    /// How long the oldest expired record has been waiting to be removed, beyond the time that this takes normally.
    fn expiry_lag(&self) -> Duration {
        let earliest = self.shards.iter().map(|shard| shard.records.earliest()).min().unwrap_or(Timestamp::NEVER);
        self.clock.get().map_or(Duration::ZERO, |clock| records::lag(earliest, clock.now()))
    }
}

//! A store together with what it needs to live: its server, or its folder.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{Begin, Clock, Duties, Fingerprint, Found, StorageKey, Store, StoreError, Terms};

pub(crate) struct Kept<S, K> {
    pub(crate) store: S,
    pub(crate) _with: K,
}

impl<S: Store, K: Send + Sync + 'static> Store for Kept<S, K> {
    type Claim = S::Claim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<S::Claim>, StoreError> {
        self.store.begin(key, fingerprint, lease).await
    }

    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<S::Claim>, StoreError> {
        self.store.begin_on_terms(key, fingerprint, terms).await
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.forget(key).await
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<Found>, StoreError> {
        self.store.inspect(key).await
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        self.store.attach(clock)
    }
}

//! A store together with what it needs to live: its server, or its folder.

use std::sync::Arc;

use idem_runtime::{
    Begin, BeginOptions, Clock, Fingerprint, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry,
};

pub(crate) struct Kept<S, K> {
    pub(crate) store: S,
    pub(crate) _with: K,
}

#[deny(clippy::missing_trait_methods)]
impl<S: Store, K: Send + Sync + 'static> Store for Kept<S, K> {
    type Claim = S::Claim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<S::Claim>, StoreError> {
        self.store.begin(key, fingerprint, options).await
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.forget(key).await
    }

    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.store.inspect(key).await
    }

    async fn inspect_unknown(
        &self,
        from: Option<&bytes::Bytes>,
    ) -> Result<idem_runtime::KeyPage<StoredEntry>, StoreError> {
        self.store.inspect_unknown(from).await
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.store.revoke(key).await
    }

    async fn drained(&self) {
        self.store.drained().await;
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.store.attach(clock)
    }
}

//! The conformance suite of stores, each case against a server of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

use std::sync::Arc;

use idem_redis::RedisStore;
use idem_runtime::{
    Begin, BeginOptions, Clock, Fingerprint, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry,
};
use idem_servers::redis::Redis;

/// A store, and the server that it needs.
struct Served {
    store: RedisStore,
    _server: Redis,
}

idem_runtime::conformance_tests!(|| async {
    let server = Redis::start().await;
    Served { store: RedisStore::connect(server.url()).await.unwrap(), _server: server }
});

#[deny(clippy::missing_trait_methods)]
impl Store for Served {
    type Claim = <RedisStore as Store>::Claim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<Self::Claim>, StoreError> {
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

    async fn drained(&self) {
        self.store.drained().await;
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        self.store.attach(clock)
    }
}

//! The conformance suite of stores, each case against a server of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

use idem_redis::RedisStore;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{Begin, Clock, Duties, Fingerprint, Found, StorageKey, Store, StoreError, Terms};
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

/// Passes everything on.
impl Store for Served {
    type Claim = <RedisStore as Store>::Claim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<Self::Claim>, StoreError> {
        self.store.begin(key, fingerprint, lease).await
    }

    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<Self::Claim>, StoreError> {
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

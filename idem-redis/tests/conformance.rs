//! The conformance suite of stores, each case against a server of its own: as a user with all rights, with the documented ones, and
//! over the connection of the service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

#[allow(unreachable_pub, reason = "a module of each test")]
mod common;

use std::sync::Arc;

use idem_redis::RedisStore;
use idem_runtime::{
    Begin, BeginOptions, Clock, Fingerprint, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry,
};
use idem_testkit::redis::Redis;

/// A store, and the server that it needs.
struct Served {
    store: RedisStore,
    _server: Redis,
}

mod with_all_rights {
    use super::*;

    idem_runtime::conformance_tests!(|| async {
        let server = Redis::start().await;
        Served { store: RedisStore::connect(server.url()).await.unwrap(), _server: server }
    });
}

mod with_the_documented_rights {
    use super::*;

    idem_runtime::conformance_tests!(|| async {
        let server = Redis::start().await;
        // Operators list unknown outcomes, which is optional.
        common::set_user(&server, &[&common::documented_rights()[..], &["+scan"]].concat()).await;
        let store = RedisStore::builder(common::user_url(&server)).prefix("shop").connect().await.unwrap();
        Served { store, _server: server }
    });
}

mod over_a_connection_manager {
    use super::*;

    idem_runtime::conformance_tests!(|| async {
        let server = Redis::start().await;
        let manager = redis::Client::open(server.url()).unwrap().get_connection_manager().await.unwrap();
        Served { store: RedisStore::from_connection_manager(manager), _server: server }
    });
}

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

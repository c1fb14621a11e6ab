//! The store.

use std::fmt;
use std::sync::Arc;

use idem_runtime::remote::UnconfirmedClaims;
use idem_runtime::{
    Begin, BeginOptions, Clock, Fingerprint, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry,
};

use crate::begin::{Releaser, begin};
use crate::claim::RedisClaim;
use crate::client::Client;
use crate::config::RedisStoreBuilder;
use crate::connection::Connection;
use crate::errors::ConnectError;
use crate::scripts::Scripts;
use crate::subscription::Subscription;

/// Claims and records in Redis or Valkey, for services that run as several processes.
///
/// A clone is cheap and shares the connection. The [crate's front page](crate) says what is guaranteed and what is not.
///
/// A `begin` whose reply is lost, or that is dropped half-way, may leave an unconfirmed claim. It is released in the background,
/// for as long as its lease could last, and [`Idempotency::drain`](idem_runtime::Idempotency::drain) waits for that. If the
/// process exits before, the key is in flight until the lease expires, and then its outcome is unknown for the TTL, although no
/// handler started.
///
/// ```no_run
/// # async fn example() -> Result<(), idem_redis::ConnectError> {
/// use idem_redis::RedisStore;
/// use idem_runtime::Idempotency;
///
/// let idempotency = Idempotency::new(RedisStore::connect("redis://localhost:6379").await?);
/// # let _ = idempotency;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    pub(crate) client: Arc<Client>,
    background: Arc<Background>,
}

/// What the store does besides its steps. It ends with the last clone of the store.
struct Background {
    subscription: Subscription,
    unconfirmed: UnconfirmedClaims<Releaser>,
}

impl RedisStore {
    /// Connects to the server at `url`, such as `redis://:password@localhost:6379/0`, with the default settings.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong with the URL or with the server. Nothing was written.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }

    /// Returns a builder, to change the default settings.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(url.into())
    }
}

impl RedisStoreBuilder {
    /// Connects, and checks that the server keeps what is written.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong with the settings or with the server. Nothing was written.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind, except scripts that the server may have loaded.
    pub async fn connect(self) -> Result<RedisStore, ConnectError> {
        self.validate()?;
        let Self { url, prefix, durability, timeout } = self;
        let client = redis::Client::open(url).map_err(ConnectError::Unreachable)?;
        let connection = Connection::new(client, timeout.saturating_add(durability.wait()));
        let client = Arc::new(Client { connection, scripts: Scripts::new(), prefix, durability });
        client.check_server(timeout).await?;
        let background = Background {
            subscription: Subscription::new(Arc::clone(&client)),
            unconfirmed: UnconfirmedClaims::new(Releaser(Arc::clone(&client))),
        };
        Ok(RedisStore { client, background: Arc::new(background) })
    }
}

impl Store for RedisStore {
    type Claim = RedisClaim;

    /// # Cancel safety
    /// A claim that is left unconfirmed is released in the background, as long as this process lives and Redis can be reached.
    /// Otherwise it is abandoned when its lease expires.
    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<RedisClaim>, StoreError> {
        begin(&self.client, &self.background.unconfirmed, key, fingerprint, options).await
    }

    async fn ended(&self, key: &StorageKey) {
        self.background.subscription.ended(key).await;
    }

    /// A value that cannot be read is an error, and stays.
    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.client.forget(&self.client.name(key)).await?)
    }

    /// Reads, and writes nothing. Replays are not counted.
    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        Ok(self.client.inspect(key).await?)
    }

    /// Waits until each unconfirmed claim is released, or its lease has expired.
    async fn drained(&self) {
        self.background.unconfirmed.drained().await;
    }

    /// Expiry is judged by the server's clock, and leases need renewal.
    fn attach(&self, _: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: false }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.client.prefix)
            .field("durability", &self.client.durability)
            .finish_non_exhaustive()
    }
}

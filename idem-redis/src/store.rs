//! The store.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use idem_runtime::remote::OwnerToken;
use idem_runtime::{
    Begin, BeginOptions, Clock, Fingerprint, KeyPage, StorageKey, Store, StoreCapabilities, StoreError, StoredEntry,
};

use crate::begin::begin;
use crate::claim::RedisClaim;
use crate::client::Client;
use crate::config::{RedisStoreBuilder, Server};
use crate::errors::ConnectError;
use crate::link::{LinkSource, Place};
use crate::unconfirmed::UnconfirmedByNode;
use crate::waiting::Waiting;

/// Claims and records in Redis or Valkey, for services that run as several processes.
///
/// A clone is cheap and shares the connection. The [crate's front page](crate) says what is guaranteed and what is not.
///
/// A `begin` whose reply is lost, or that is dropped half-way, may leave an unconfirmed claim. It is released in the background, as soon as
/// the server replies, and [`Idempotency::drain`](idem_runtime::Idempotency::drain) waits for that, two leases at most. If the process exits
/// earlier, the key is in flight until the lease expires, and then its outcome is unknown for the TTL, although no handler started.
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
    waiting: Waiting,
    unconfirmed: UnconfirmedByNode,
}

impl RedisStore {
    /// Connects to the server at `url`, such as `redis://:password@localhost:6379/0`, with the default settings.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong with the URL or with the server. Nothing was written.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }

    /// Makes a store over the connection that the service has, with the default settings. The store checks the server before the first
    /// step.
    ///
    /// The manager decides about timeouts and reconnecting. It keeps a connection that does not reply, and one to a primary that
    /// became a replica; with a URL the store recovers from both. Waiters only poll, and [`Durability`](crate::Durability) other than
    /// `None` needs a URL. A network that recovers after minutes may still deliver a claim that was given up, whose key then stays
    /// in flight for one lease. On Linux, give the client a `user_timeout` of 20 s ([`TcpSettings`](redis::io::tcp::TcpSettings)),
    /// as the store does for a URL.
    ///
    /// ```no_run
    /// # async fn example() -> redis::RedisResult<()> {
    /// use idem_redis::RedisStore;
    ///
    /// let manager = redis::Client::open("redis://localhost:6379")?.get_connection_manager().await?;
    /// let store = RedisStore::from_connection_manager(manager);
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_connection_manager(manager: redis::aio::ConnectionManager) -> Self {
        let RedisStoreBuilder { prefix, durability, timeout, .. } =
            RedisStoreBuilder::new(Server::Manager(manager.clone()));
        Self::new(Client::new(Place::Server(LinkSource::Manager(manager)), prefix, durability, timeout))
    }

    /// Returns a builder, to change the default settings.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Server::Url(url.into()))
    }

    /// Returns a builder, to change the settings of a store [over the connection that the service
    /// has](Self::from_connection_manager).
    pub fn builder_from_connection_manager(manager: redis::aio::ConnectionManager) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Server::Manager(manager))
    }

    /// Returns a builder for a store in a Redis Cluster. `urls` name some of its nodes, primaries or replicas, and at least one of these must
    /// be reachable when the store connects. Keys of a primary that cannot be reached are refused with 503, until it or its successor can.
    /// User, password and scheme of the first URL are used for all nodes.
    ///
    /// Each claim or record is one key in Redis, so slots may move and nodes may fail while claims live.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), idem_redis::ConnectError> {
    /// use idem_redis::RedisStore;
    ///
    /// let store = RedisStore::cluster_builder(["redis://node-1:6379", "redis://node-2:6379"]).prefix("shop").connect().await?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cluster_builder<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Server::Cluster(urls.into_iter().map(Into::into).collect()))
    }

    fn new(client: Client) -> Self {
        let client = Arc::new(client);
        let background = Background {
            waiting: Waiting::new(Arc::clone(&client)),
            unconfirmed: UnconfirmedByNode::new(Arc::clone(&client)),
        };
        Self { client, background: Arc::new(background) }
    }
}

impl RedisStoreBuilder {
    /// Connects, and checks the server: that it keeps what is written, and that the user may do all that the store does. That is
    /// checked again on each later connection.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong with the settings or with the server. Nothing was written.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind, except a script that the server may have loaded.
    pub async fn connect(self) -> Result<RedisStore, ConnectError> {
        self.validate()?;
        let place = self.place()?;
        let client = Client::new(place, self.prefix, self.durability, self.timeout);
        client.open().await?;
        Ok(RedisStore::new(client))
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
        self.background.waiting.ended(key).await;
    }

    /// A value that cannot be read is an error, and stays.
    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.client.forget(&self.client.name(key)).await?)
    }

    /// Reads, and writes nothing. Replays are not counted.
    async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        Ok(self.client.inspect(key).await?)
    }

    /// A page is one step of SCAN, so the user of the connection must be allowed to call it.
    async fn inspect_unknown(&self, from: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, StoreError> {
        Ok(self.client.inspect_unknown(from).await?)
    }

    async fn revoke(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.client.revoke(key, OwnerToken::random()?).await?)
    }

    /// Waits until each unconfirmed claim is released.
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
        f.debug_struct("RedisStore").field("prefix", &self.client.prefix).finish_non_exhaustive()
    }
}

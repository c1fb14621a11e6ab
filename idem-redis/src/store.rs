//! The store: what its clones share, and how a step is sent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{Begin, Clock, Duties, Fingerprint, Found, StorageKey, Store, StoreError, Terms};
use redis::{Value, cmd};
use tokio::time::Instant;

use crate::begin::begin;
use crate::builder::{Durability, RedisStoreBuilder};
use crate::claim::RedisClaim;
use crate::errors::{ConnectError, Trouble};
use crate::link::{Heard, Link};
use crate::orphans::Orphans;
use crate::scripts::{Scripts, Text};
use crate::waiting::Waiting;
use crate::wire::Name;

/// How long an abandoned claim stays where the caller did not say.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Claims and records in Redis or Valkey, for services that run as several processes.
///
/// A clone is cheap and shares the connection. See the [crate's front page](crate) for what holds and what does not.
///
/// A `begin` whose answer is lost, or that is dropped half-way, may have claimed the key for nobody. Such a claim is given
/// back in the background, for as long as its lease could last.
/// [`Idempotency::drain`](idem_runtime::Idempotency::drain) does not wait for that. If the process exits before it is done,
/// the key is in flight until the lease is over, and then its outcome is unknown for the TTL, although no body started.
#[derive(Clone)]
pub struct RedisStore {
    pub(crate) inner: Arc<Inner>,
}

/// What the clones and the claims share.
pub(crate) struct Inner {
    pub(crate) link: Arc<Link>,
    pub(crate) scripts: Arc<Scripts>,
    prefix: String,
    durability: Durability,
    waiting: Waiting,
    pub(crate) orphans: Orphans,
}

/// What a script says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It did its step, or finds that it has done it before.
    Done,
    /// What should be over is not.
    NotOver,
    /// Something else stands under the key.
    Stands(Bytes),
    /// Nothing does.
    Absent,
}

/// What became of a step that the server has answered.
pub(crate) struct Stepped {
    pub(crate) said: Said,
    /// The error says that it took effect, but not in as many copies as it must.
    pub(crate) copied: Result<(), Trouble>,
    /// Whether it was sent twice, so that this may be the answer to a repetition.
    pub(crate) repeated: bool,
}

/// Whether a step must be in the replicas before it counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    AsDeclared,
    One,
}

impl RedisStore {
    /// Connects to the server at `url`, such as `redis://:password@localhost:6379/0`, with the default settings.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong with the URL or with the server. Nothing was written.
    pub async fn connect(url: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }

    /// A store with settings of your own.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(url.into())
    }
}

impl Said {
    /// Reads the reply of a script.
    pub(crate) fn read(reply: Value) -> Result<Self, Trouble> {
        match reply {
            Value::Int(1) => Ok(Self::Done),
            Value::Int(0) => Ok(Self::NotOver),
            Value::BulkString(value) => Ok(Self::Stands(value.into())),
            Value::Nil => Ok(Self::Absent),
            _ => Err(Trouble::Reply),
        }
    }
}

impl Inner {
    pub(crate) fn new(link: Arc<Link>, scripts: Scripts, prefix: String, durability: Durability) -> Self {
        let scripts = Arc::new(scripts);
        let waiting = Waiting::new(Arc::clone(&link));
        let orphans = Orphans::new(Arc::clone(&link), Arc::clone(&scripts));
        Self { link, scripts, prefix, durability, waiting, orphans }
    }

    /// Runs one script, and waits for replicas if it wrote.
    pub(crate) async fn step(
        &self,
        text: &Text,
        name: &Name,
        arguments: &[&[u8]],
        copies: Copies,
        deadline: Instant,
    ) -> Result<Stepped, Trouble> {
        let Heard { answer, repeated, number } = run(&self.link, text, name, arguments, deadline).await?;
        let said = Said::read(answer)?;
        let copied = if said == Said::Done { self.copied(copies, number, deadline).await } else { Ok(()) };
        Ok(Stepped { said, copied, repeated })
    }

    /// Waits until enough replicas have what was written. Not in the same round trip as the write: a step that finds a record
    /// writes nothing, and must not wait for replicas that are gone. On the same connection, since WAIT waits for its writes.
    pub(crate) async fn copied(&self, copies: Copies, number: u64, deadline: Instant) -> Result<(), Trouble> {
        let Durability::Replicas { count: want, within } = self.durability else { return Ok(()) };
        if copies == Copies::One {
            return Ok(());
        }
        let mut wait = cmd("WAIT");
        wait.arg(want).arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        match self.link.follow(number, &wait, deadline).await? {
            Value::Int(have) if have >= i64::from(want) => Ok(()),
            Value::Int(have) => Err(Trouble::NotReplicated { have, want, within }),
            _ => Err(Trouble::Reply),
        }
    }

    pub(crate) fn name(&self, key: &StorageKey) -> Name {
        Name::new(&self.prefix, key)
    }
}

/// Runs one script. A server that does not know it gets its text.
pub(crate) async fn run(
    link: &Link,
    text: &Text,
    name: &Name,
    arguments: &[&[u8]],
    deadline: Instant,
) -> Result<Heard<Value>, Trouble> {
    let mut heard = link.send(&text.by_name(&name.0, arguments), deadline).await?;
    if matches!(&heard.answer, Value::ServerError(error) if error.code() == "NOSCRIPT") {
        let repeated = heard.repeated;
        heard = link.send(&text.in_full(&name.0, arguments), deadline).await?;
        heard.repeated |= repeated;
    }
    heard.accepted()
}

impl Store for RedisStore {
    type Claim = RedisClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<RedisClaim>, StoreError> {
        self.begin_on_terms(key, fingerprint, &Terms::new(lease, DAY)).await
    }

    /// # Cancel safety
    /// A claim that is granted to nobody, since the future was dropped or the answer was lost, is given back in the
    /// background as long as this process lives and Redis can be reached. Otherwise it is abandoned when its lease is over.
    async fn begin_on_terms(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<RedisClaim>, StoreError> {
        begin(&self.inner, key, fingerprint, terms).await
    }

    async fn ended(&self, key: &StorageKey) {
        self.inner.waiting.ended(&self.inner.name(key)).await;
    }

    /// A value that cannot be read is an error, and stays.
    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        Ok(self.inner.forget(&self.inner.name(key)).await?)
    }

    /// Reads, and writes nothing. Replays are not counted.
    async fn inspect(&self, key: &StorageKey) -> Result<Option<Found>, StoreError> {
        Ok(self.inner.inspect(key).await?)
    }

    /// Expiry is judged by the server's clock, and leases need renewal.
    fn attach(&self, _: &Arc<dyn Clock>) -> Duties {
        Duties { expire: false, renew: true }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.inner.prefix)
            .field("durability", &self.inner.durability)
            .finish_non_exhaustive()
    }
}

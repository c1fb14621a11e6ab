//! The store: each step is one script and one round trip.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::{Begin, Clock, Duties, Fingerprint, StorageKey, Store, StoreError, Terms};
use redis::{Pipeline, Value, cmd};
use tokio::time::Instant;

use crate::builder::{Durability, RedisStoreBuilder};
use crate::claim::RedisClaim;
use crate::errors::{ConnectError, Trouble};
use crate::link::{Link, Replies};
use crate::orphans::Orphans;
use crate::scripts::{Scripts, Text, microseconds};
use crate::waiting::Waiting;
use crate::wire::{self, Name, Owner, Said};

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
    orphans: Orphans,
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

impl Inner {
    pub(crate) fn new(link: Arc<Link>, scripts: Scripts, prefix: String, durability: Durability) -> Self {
        let scripts = Arc::new(scripts);
        let waiting = Waiting::new(Arc::clone(&link));
        let orphans = Orphans::new(Arc::clone(&link), Arc::clone(&scripts));
        Self { link, scripts, prefix, durability, waiting, orphans }
    }

    /// Runs one script.
    pub(crate) async fn step(
        &self,
        text: &Text,
        name: &Name,
        arguments: &[&[u8]],
        copies: Copies,
    ) -> Result<Stepped, Trouble> {
        let wait = match self.durability {
            Durability::Replicas { count, within } if copies == Copies::AsDeclared => Some((count, within)),
            _ => None,
        };
        run(&self.link, text, name, arguments, wait).await
    }

    pub(crate) fn name(&self, key: &StorageKey) -> Name {
        Name::new(&self.prefix, key)
    }
}

/// Runs one script, and waits for replicas if it wrote. A server that does not know the script gets its text.
pub(crate) async fn run(
    link: &Link,
    text: &Text,
    name: &Name,
    arguments: &[&[u8]],
    wait: Option<(u32, Duration)>,
) -> Result<Stepped, Trouble> {
    let deadline = link.deadline();
    let (mut known, mut repeated) = (true, false);
    loop {
        let mut commands = Pipeline::new();
        let script = if known { text.by_name(&name.key, arguments) } else { text.in_full(&name.key, arguments) };
        commands.add_command(script);
        let mut replies = link.send(&commands, deadline).await?;
        repeated |= replies.repeated;
        match replies.each.pop() {
            Some(Value::ServerError(error)) if known && error.code() == "NOSCRIPT" => known = false,
            Some(Value::ServerError(error)) => return Err(Trouble::Refused { error, repeated }),
            Some(reply) => {
                let said = Said::read(reply)?;
                let copied = match wait {
                    Some(wait) if said == Said::Done => copied(link, &replies, wait, deadline).await,
                    _ => Ok(()),
                };
                return Ok(Stepped { said, copied, repeated });
            }
            None => return Err(Trouble::Reply),
        }
    }
}

/// Waits until enough replicas have what was written. Not in the same round trip as the write: a step that finds a record
/// writes nothing, and must not wait for replicas that are gone. On the same connection, since WAIT waits for its writes.
async fn copied(
    link: &Link,
    replies: &Replies,
    (want, within): (u32, Duration),
    deadline: Instant,
) -> Result<(), Trouble> {
    let mut wait = cmd("WAIT");
    wait.arg(want).arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
    match link.follow(replies, &wait, deadline).await? {
        Value::Int(have) if have >= i64::from(want) => Ok(()),
        Value::Int(have) => Err(Trouble::NotReplicated { have, want, within }),
        _ => Err(Trouble::Reply),
    }
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
        let &Terms { lease, ttl, .. } = terms;
        let Inner { scripts, orphans, .. } = &*self.inner;
        let name = self.inner.name(key);
        let owner = Owner::random()?;
        let (lives, stays) = (microseconds(lease), microseconds(ttl));
        let arguments: [&[u8]; 4] = [&owner.0, fingerprint.as_bytes(), lives.as_bytes(), stays.as_bytes()];
        // From here on there may be a claim of which nobody knows.
        let unheard = orphans.guard(&name, owner, lease);
        let Stepped { said, copied, .. } =
            match self.inner.step(&scripts.begin, &name, &arguments, Copies::AsDeclared).await {
                Ok(answer) => answer,
                Err(trouble) => {
                    if !trouble.is_uncertain() {
                        unheard.disarm();
                    }
                    return Err(if trouble.is_full() { StoreError::Full } else { trouble.into() });
                }
            };
        if said == Said::Done
            && let Err(trouble) = copied
        {
            // The body must not run, so this claim is nobody's.
            if run(&self.inner.link, &scripts.release, &name, &release_arguments(&owner, &name), None).await.is_ok() {
                unheard.disarm();
            }
            return Err(trouble.into());
        }
        unheard.disarm();
        let claim = |former| RedisClaim::new(Arc::clone(&self.inner), *key, name.clone(), owner, former, ttl);
        match said {
            Said::Done => Ok(Begin::Claimed(claim(owner))),
            Said::Abandoned(former) => Ok(Begin::Abandoned(claim(wire::owner(&former)?))),
            Said::InFlight(fingerprint) => Ok(Begin::InFlight(wire::fingerprint(&fingerprint)?)),
            Said::Record(sealed) => Ok(Begin::Completed(wire::record(key, &name, &sealed)?)),
            Said::Unreadable => Err(Trouble::Unreadable { name: name.short(), why: None }.into()),
            Said::Lost | Said::Absent => Err(Trouble::Reply.into()),
        }
    }

    async fn ended(&self, key: &StorageKey) {
        self.inner.waiting.ended(&self.inner.name(key)).await;
    }

    /// A value that cannot be read is an error, and stays.
    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let name = self.inner.name(key);
        let arguments = [name.channel.as_bytes()];
        let stepped = self.inner.step(&self.inner.scripts.forget, &name, &arguments, Copies::One).await?;
        match stepped.said {
            // What the first of two found is not known.
            Said::Absent if stepped.repeated => Err(Trouble::Unheard.into()),
            Said::Done => Ok(true),
            Said::Absent | Said::InFlight(_) => Ok(false),
            Said::Unreadable => Err(Trouble::Unreadable { name: name.short(), why: None }.into()),
            _ => Err(Trouble::Reply.into()),
        }
    }

    /// Expiry is judged by the server's clock, and leases need renewal.
    fn attach(&self, _: &Arc<dyn Clock>) -> Duties {
        Duties { expire: false, renew: true }
    }
}

pub(crate) fn release_arguments<'a>(owner: &'a Owner, name: &'a Name) -> [&'a [u8]; 2] {
    [&owner.0, name.channel.as_bytes()]
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.inner.prefix)
            .field("durability", &self.inner.durability)
            .finish_non_exhaustive()
    }
}

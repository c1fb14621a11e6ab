//! Claiming a key: one plain command if the key is free or has a record.
//!
//! `SET NX GET` is one atomic step of the server. Of any number of them on one key, one finds no value and writes its claim; the
//! others get the value and write nothing. The reply alone decides who may run the handler:
//!
//! - No value: this owner has the claim.
//! - This owner's claim: the command was sent twice, since a reply was lost, and the first one took effect. No one else knows
//!   the token, so no handler has run under it. The claim is renewed, which also gives replicas a write to acknowledge on this
//!   connection. If that fails, the claim is not granted, and it is released.
//! - Any other value, to a command that was sent twice: the first one may still arrive when the key is free, and make a claim
//!   without an owner. It is released as well.
//! - A record, or a claim of another request: there is nothing more to ask.
//! - A claim of the same request: only the server's clock tells whether its lease has expired. A script reads the value and
//!   what is left to its key in one step, and writes nothing. Taking over is another step, which compares again.

use std::sync::Arc;

use bytes::Bytes;
use idem_runtime::remote::{InDoubt, OwnerToken, ReleaseUnconfirmed, UnconfirmedClaims};
use idem_runtime::{Begin, BeginOptions, Fingerprint, StorageKey, StoreError};
use redis::{Value, cmd};
use tokio::time::Instant;

use crate::claim::{PreviousClaim, RedisClaim};
use crate::client::{Client, Replication, ScriptReply};
use crate::connection::Reply;
use crate::errors::Error;
use crate::inspect::{MAX_ATTEMPTS, Snapshot};
use crate::value::{self, CLAIM, Decoded, Name};

/// One owner's try to claim a key.
struct Attempt<'a> {
    client: &'a Client,
    name: &'a Name,
    fingerprint: &'a Fingerprint,
    claim: &'a Bytes,
    expiry: String,
    deadline: Instant,
    /// Whether the claim exists, or may come to exist, although it was not granted.
    in_doubt: &'a InDoubt,
}

/// What a try came to.
enum BeginReply {
    /// The claim was written. An error says that too few replicas have it.
    Granted(Result<(), Error>),
    InFlight(Fingerprint),
    Abandoned(PreviousClaim),
    /// The checksummed bytes of a record.
    Record(Bytes),
}

pub(crate) async fn begin(
    client: &Arc<Client>,
    unconfirmed: &UnconfirmedClaims<Releaser>,
    key: &StorageKey,
    fingerprint: &Fingerprint,
    options: &BeginOptions,
) -> Result<Begin<RedisClaim>, StoreError> {
    let (name, ttl) = (client.name(key), options.ttl);
    let owned_by = |owner, previous| RedisClaim {
        client: Arc::clone(client),
        key: *key,
        name: name.clone(),
        owner,
        value: value::encode_claim(&name, owner, ttl, fingerprint, options.info.as_ref()),
        previous,
        ttl,
        maybe_released: Arc::default(),
    };
    let mut claim = owned_by(OwnerToken::random()?, None);
    let guard = unconfirmed.guard(UnconfirmedClaim { key: *key, value: claim.value.clone() }, options.lease);
    let attempt = Attempt {
        client,
        name: &name,
        fingerprint,
        claim: &claim.value,
        expiry: value::claim_expiry(options.lease, ttl).to_string(),
        deadline: client.connection.deadline(),
        in_doubt: guard.in_doubt(),
    };
    match attempt.reply().await {
        Ok(BeginReply::Granted(Ok(()))) => {
            guard.confirm();
            Ok(Begin::Claimed(claim))
        }
        Ok(BeginReply::Granted(Err(error))) => {
            // The handler must not run.
            if attempt.release().await.is_ok() {
                guard.confirm();
            }
            Err(error.into())
        }
        Ok(BeginReply::InFlight(fingerprint)) => Ok(Begin::InFlight(fingerprint)),
        Ok(BeginReply::Record(content)) => Ok(Begin::Completed(value::decode_record(key, &name, &content)?)),
        Ok(BeginReply::Abandoned(previous)) => {
            if guard.in_doubt().get() {
                // What is about to be released must not be the claim that takes over.
                claim = owned_by(OwnerToken::random()?, None);
            }
            claim.previous = Some(previous);
            Ok(Begin::Abandoned(claim))
        }
        Err(error) if error.is_full() => Err(StoreError::Full),
        Err(error) => Err(error.into()),
    }
}

impl Attempt<'_> {
    async fn reply(&self) -> Result<BeginReply, Error> {
        let mut set = cmd("SET");
        set.arg(&self.name.0).arg(&**self.claim).arg("NX").arg("GET").arg("PX").arg(&self.expiry);
        for _ in 0..MAX_ATTEMPTS {
            let Reply { value, repeated, connection } = self.send(&set).await?;
            match value {
                Value::Nil => {
                    // Until the claim is returned to its owner.
                    self.in_doubt.set(true);
                    return Ok(BeginReply::Granted(self.client.replicate(connection, self.deadline).await));
                }
                Value::BulkString(value) if value == **self.claim => return self.renew().await,
                Value::BulkString(value) => match value::decode(self.name, &value.into()) {
                    Some(Decoded::Record(content)) => return Ok(BeginReply::Record(content)),
                    Some(Decoded::Claim(stored)) if stored.fingerprint == *self.fingerprint => {}
                    Some(Decoded::Claim(stored)) => return Ok(BeginReply::InFlight(stored.fingerprint)),
                    None => return Err(Error::unreadable(self.name)),
                },
                // It takes no writes: it is full, a replica, or has too few of them. An existing value is still reported.
                Value::ServerError(error) => {
                    return match self.client.snapshot(self.name, self.deadline).await {
                        Ok(Some(snapshot)) if snapshot.value != *self.claim => Ok(self.judge(snapshot)),
                        Err(error @ Error::Unreadable { .. }) => Err(error),
                        _ => Err(Error::Refused { error, repeated }),
                    };
                }
                _ => {
                    self.in_doubt.set(true);
                    return Err(Error::UnknownReply);
                }
            }
            match self.client.snapshot(self.name, self.deadline).await? {
                Some(snapshot) if snapshot.value == *self.claim => return self.renew().await,
                Some(snapshot) => return Ok(self.judge(snapshot)),
                // The claim has ended meanwhile, so the key is free.
                None => {}
            }
        }
        // Each time another request was faster.
        Ok(BeginReply::InFlight(*self.fingerprint))
    }

    /// Sends the command that claims, and keeps [`in_doubt`](Self::in_doubt) right.
    async fn send(&self, set: &redis::Cmd) -> Result<Reply<Value>, Error> {
        let earlier = self.in_doubt.set(true);
        let sent = self.client.connection.send(set, self.deadline).await;
        let now = match &sent {
            Ok(reply) => reply.repeated,
            Err(error) => error.is_in_doubt(),
        };
        self.in_doubt.set(earlier || now);
        sent
    }

    /// The claim was written by a command whose reply was lost.
    async fn renew(&self) -> Result<BeginReply, Error> {
        self.in_doubt.set(true);
        let (script, arguments) = (&self.client.scripts.renew, [&self.claim[..], self.expiry.as_bytes()]);
        let step = self.client.step(script, self.name, &arguments, Replication::AsConfigured, self.deadline);
        let result = step.await?;
        match result.reply {
            ScriptReply::Done => Ok(BeginReply::Granted(result.replicated)),
            _ => Err(Error::Unconfirmed),
        }
    }

    fn judge(&self, snapshot: Snapshot) -> BeginReply {
        match &snapshot.decoded {
            Decoded::Record(content) => BeginReply::Record(content.clone()),
            Decoded::Claim(stored) if stored.fingerprint == *self.fingerprint && snapshot.has_expired(stored) => {
                BeginReply::Abandoned(PreviousClaim { ttl: stored.ttl, value: snapshot.value })
            }
            Decoded::Claim(stored) => BeginReply::InFlight(stored.fingerprint),
        }
    }

    async fn release(&self) -> Result<Reply<Value>, Error> {
        let (client, channel) = (self.client, self.name.channel());
        let arguments = [&self.claim[..], channel.as_bytes()];
        client.run(&client.scripts.release, self.name, &arguments, client.connection.deadline()).await
    }
}

/// Releases unconfirmed claims.
pub(crate) struct Releaser(pub(crate) Arc<Client>);

pub(crate) struct UnconfirmedClaim {
    key: StorageKey,
    value: Bytes,
}

impl ReleaseUnconfirmed for Releaser {
    type Claim = UnconfirmedClaim;

    // All of them share one connection.
    const MAX_CONCURRENT_TRIES: usize = usize::MAX;

    async fn release(&self, claim: &UnconfirmedClaim) -> bool {
        let Self(client) = self;
        let name = client.name(&claim.key);
        let (script, channel) = (&client.scripts.release, name.channel());
        let arguments = [&claim.value[..], channel.as_bytes()];
        let sent = client.run(script, &name, &arguments, client.connection.deadline()).await;
        match sent.and_then(|reply| ScriptReply::read(reply.value)) {
            Ok(ScriptReply::Absent) | Err(_) => false,
            // It may still arrive once this other claim has ended.
            Ok(ScriptReply::Found(value)) => !value.starts_with(CLAIM),
            Ok(ScriptReply::Done | ScriptReply::NotExpired) => true,
        }
    }
}

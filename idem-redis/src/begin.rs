//! Claiming a key, in one round trip.
//!
//! The script is one atomic step of the server. Of any number of them on one key, one finds no value and writes its claim; the
//! others change nothing, and get what prevents them. The reply alone decides who may run the handler:
//!
//! - It was written: this owner has the claim. If the script was sent twice, since a reply was lost, the second one finds the claim
//!   of the first and renews it. No one else knows the token, so no handler has run under it. When such a claim is released, the
//!   first one may still arrive, so what it would make is released as well.
//! - Anything else, to a script that was sent twice: the first one may still arrive when the key is free, and make a claim without
//!   an owner. So it is released.
//! - A record: the whole one if its fingerprint is the request's, otherwise its head.
//! - A claim, and what is left to its key: only the server's clock tells whether its lease has expired. If it has, the script also
//!   makes sure that the server is a primary. Taking over is another step, which compares again.

use std::sync::Arc;

use bytes::Bytes;
use idem_runtime::remote::{InDoubt, OwnerToken};
use idem_runtime::{Begin, BeginOptions, Fingerprint, StorageKey, StoreError};
use redis::Value;
use tokio::time::Instant;

use crate::claim::{LateBegin, PreviousClaim, RedisClaim};
use crate::client::Client;
use crate::connection::Reply;
use crate::errors::Error;
use crate::inspect::decode;
use crate::link::MAX_DELIVERY;
use crate::unconfirmed::{UnconfirmedByNode, UnconfirmedClaim};
use crate::value::{self, Decoded, Name, StoredRecord};

/// One owner's try to claim a key.
struct BeginTry<'a> {
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
    /// The claim was written, maybe by the second of two tries. An error says that too few replicas have it.
    Granted {
        repeated: bool,
        replicated: Result<(), Error>,
    },
    InFlight(Fingerprint),
    Abandoned(PreviousClaim),
    Record(StoredRecord),
}

pub(crate) async fn begin(
    client: &Arc<Client>,
    unconfirmed: &UnconfirmedByNode,
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
        late_begin: None,
    };
    let mut claim = owned_by(OwnerToken::random()?, None);
    let unconfirmed = unconfirmed.of(&name);
    // What was sent may be on its way for longer than a short lease.
    let lease = options.lease.max(MAX_DELIVERY);
    let guard = unconfirmed.guard(UnconfirmedClaim { key: *key, value: claim.value.clone() }, lease);
    let attempt = BeginTry {
        client,
        name: &name,
        fingerprint,
        claim: &claim.value,
        expiry: value::claim_expiry(options.lease, ttl).to_string(),
        deadline: client.deadline(),
        in_doubt: guard.in_doubt(),
    };
    match attempt.reply().await {
        Ok(BeginReply::Granted { repeated, replicated: Ok(()) }) => {
            guard.confirm();
            claim.late_begin = repeated.then(|| LateBegin { unconfirmed: Arc::clone(&unconfirmed), lease });
            Ok(Begin::Claimed(claim))
        }
        Ok(BeginReply::Granted { repeated, replicated: Err(error) }) => {
            // The handler must not run.
            if attempt.release().await.is_ok() && !repeated {
                guard.confirm();
            }
            Err(error.into())
        }
        Ok(BeginReply::InFlight(fingerprint)) => Ok(Begin::InFlight(fingerprint)),
        Ok(BeginReply::Record(stored)) if stored.summary.fingerprint() != fingerprint => {
            Ok(Begin::Completed(stored.summary))
        }
        Ok(BeginReply::Record(stored)) => Ok(Begin::Completed(stored.decode(key, &name)?)),
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

impl BeginTry<'_> {
    async fn reply(&self) -> Result<BeginReply, Error> {
        let Reply { value, repeated } = self.send().await?;
        match value {
            Value::Int(1) => {
                // Until the claim is returned to its owner.
                self.in_doubt.set(true);
                let replicated = self.client.replicate(self.name, self.claim.clone()).await;
                Ok(BeginReply::Granted { repeated, replicated })
            }
            Value::BulkString(record) => match value::decode(self.name, &record.into()) {
                Some(Decoded::Record(stored)) => Ok(BeginReply::Record(stored)),
                _ => Err(Error::unreadable(self.name)),
            },
            value @ Value::Array(_) => {
                let (value, left): (Bytes, i64) = redis::from_redis_value(value).map_err(|_| self.unknown_reply())?;
                Ok(match decode(self.name, &value, left)? {
                    Decoded::Record(stored) => BeginReply::Record(stored),
                    Decoded::Claim(stored) if stored.fingerprint != *self.fingerprint || !stored.has_expired(left) => {
                        BeginReply::InFlight(stored.fingerprint)
                    }
                    Decoded::Claim(stored) => BeginReply::Abandoned(PreviousClaim { ttl: stored.ttl, value }),
                })
            }
            _ => Err(self.unknown_reply()),
        }
    }

    /// Sends the script that claims, and keeps [`in_doubt`](Self::in_doubt) right.
    async fn send(&self) -> Result<Reply<Value>, Error> {
        self.in_doubt.set(true);
        let arguments = [&self.claim[..], self.expiry.as_bytes(), self.fingerprint.as_bytes()];
        let sent = self.client.run(&self.client.scripts.begin, self.name, &arguments, self.deadline).await;
        self.in_doubt.set(match &sent {
            Ok(reply) => reply.repeated,
            Err(error) => error.is_in_doubt(),
        });
        sent
    }

    fn unknown_reply(&self) -> Error {
        self.in_doubt.set(true);
        Error::UnknownReply
    }

    async fn release(&self) -> Result<Reply<Value>, Error> {
        let (client, channel) = (self.client, self.name.channel());
        let arguments = [&self.claim[..], channel.as_bytes()];
        client.run(&client.scripts.release, self.name, &arguments, client.deadline()).await
    }
}

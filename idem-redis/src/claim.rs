//! A claim in Redis.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::remote::{OwnerToken, UnconfirmedClaims};
use idem_runtime::{Claim, Record, StorageKey, StoreError};

use crate::client::{Client, StepResult};
use crate::errors::Error;
use crate::scripts::{Script, ScriptReply};
use crate::unconfirmed::{Releaser, UnconfirmedClaim};
use crate::value::{self, Name, RECORD_START, milliseconds};

/// A claim in a [`RedisStore`](crate::RedisStore). It lives for its lease, whether this value is dropped or not, and then it
/// is abandoned.
///
/// An owner whose lease has expired may still renew and complete its claim, unless another request has taken it over.
pub struct RedisClaim {
    pub(crate) client: Arc<Client>,
    pub(crate) key: StorageKey,
    pub(crate) name: Name,
    pub(crate) owner: OwnerToken,
    /// As it is stored, or will be once it has taken over. It does not change while the claim lives.
    pub(crate) value: Bytes,
    /// The abandoned claim that this one has not taken over yet.
    pub(crate) previous: Option<PreviousClaim>,
    pub(crate) ttl: Duration,
    /// A release was sent, and may have taken effect. Shared by clones.
    pub(crate) maybe_released: Arc<AtomicBool>,
    /// Set if `begin` was sent twice: its first try may arrive when this claim has been released, and make a claim without an owner.
    pub(crate) late_begin: Option<LateBegin>,
}

/// What releases the claim that a late `begin` makes.
#[derive(Clone)]
pub(crate) struct LateBegin {
    pub(crate) unconfirmed: Arc<UnconfirmedClaims<Releaser>>,
    /// How long it may still arrive.
    pub(crate) lease: Duration,
}

/// An abandoned claim.
#[derive(Clone)]
pub(crate) struct PreviousClaim {
    pub(crate) value: Bytes,
    /// In milliseconds. The lease has expired when less is left to the key.
    pub(crate) ttl: i64,
}

impl RedisClaim {
    /// Runs a script that compares the value with that of a claim.
    async fn step(&self, script: &Script, arguments: &[&[u8]]) -> Result<StepResult, Error> {
        let deadline = self.client.deadline();
        let result = self.client.step(script, &self.name, arguments, deadline).await?;
        match &result.reply {
            ScriptReply::Found(value) if value::decode(&self.name, value).is_none() => {
                Err(Error::unreadable(&self.name))
            }
            _ => Ok(result),
        }
    }

    async fn store(&self, record: &Record, ttl: Duration, small: bool) -> Result<(), StoreError> {
        let value = value::encode_record(&self.key, &self.name, self.owner, record);
        let (expiry, channel) = (milliseconds(ttl).to_string(), self.name.channel());
        let mut arguments: &[&[u8]] = &[&self.value, &value, expiry.as_bytes(), channel.as_bytes(), b"small"];
        if !small {
            arguments = &arguments[..4];
        }
        let result = match self.step(&self.client.scripts.complete, arguments).await {
            // A tombstone takes hardly more room than the claim.
            Err(error) if (error.is_full() || error.is_too_long()) && !small => {
                tracing::warn!(key = %self.key, %error, "could not record a response; its retries are refused");
                return Box::pin(self.store(&record.tombstone(), ttl, true)).await;
            }
            result => result?,
        };
        judge(&result.reply)?;
        Ok(self.client.replicate(&self.name, value.slice(..RECORD_START)).await?)
    }
}

impl Claim for RedisClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let scripts = &self.client.scripts;
        let expiry = value::claim_expiry(lease, self.ttl).to_string();
        match &self.previous {
            // A renewal that no replica has is made up for by the next one.
            None => judge(&self.step(&scripts.renew, &[&self.value, expiry.as_bytes()]).await?.reply)?,
            // Taking over lets a handler run, as `begin` does.
            Some(previous) => {
                let left = previous.ttl.to_string();
                let arguments = [&previous.value[..], &self.value, expiry.as_bytes(), left.as_bytes()];
                judge(&self.step(&scripts.take_over, &arguments).await?.reply)?;
                self.client.replicate(&self.name, self.value.clone()).await?;
            }
        }
        self.previous = None;
        Ok(())
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.store(&record, ttl, false).await
    }

    async fn release(self) -> Result<(), StoreError> {
        let channel = self.name.channel();
        let earlier = self.maybe_released.swap(true, Ordering::SeqCst);
        // A release that is dropped half-way, or fails, leaves the flag set.
        let arguments = [&self.value[..], channel.as_bytes()];
        let result = self.step(&self.client.scripts.release, &arguments).await?;
        if let Some(LateBegin { unconfirmed, lease }) = self.late_begin {
            unconfirmed.guard(UnconfirmedClaim { key: self.key, value: self.value }, lease).in_doubt().set(true);
        }
        match result.reply {
            // A reply was lost. This is what that try left, or what another request has made of the free key since. The claim is
            // no longer this owner's, which is all that a release is for.
            ScriptReply::Absent | ScriptReply::Found(_) if earlier || result.repeated => Ok(()),
            reply => {
                self.maybe_released.store(reply == ScriptReply::Done, Ordering::SeqCst);
                judge(&reply)
            }
        }
    }

    fn try_clone(&self) -> Option<Self> {
        Some(Self {
            client: Arc::clone(&self.client),
            key: self.key,
            name: self.name.clone(),
            owner: self.owner,
            value: self.value.clone(),
            previous: self.previous.clone(),
            ttl: self.ttl,
            maybe_released: Arc::clone(&self.maybe_released),
            late_begin: self.late_begin.clone(),
        })
    }
}

/// What the reply of a script means for the owner of the claim.
fn judge(reply: &ScriptReply) -> Result<(), StoreError> {
    match reply {
        ScriptReply::Done => Ok(()),
        ScriptReply::NotExpired | ScriptReply::Found(_) | ScriptReply::Absent => Err(StoreError::Lost),
    }
}

impl fmt::Debug for RedisClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClaim").field("key", &self.key).finish_non_exhaustive()
    }
}

//! A claim in Redis.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{Claim, Fingerprint, Origin, Record, StorageKey, StoreError};

use crate::errors::Trouble;
use crate::look::LOOKS;
use crate::scripts::Text;
use crate::store::{Copies, Inner, Said, Stepped};
use crate::wire::{self, Ends, Name, Owner, Times, Written, milliseconds};

/// A claim in a [`RedisStore`](crate::RedisStore). It lives for its lease, whether this value is there or not, and then it
/// is abandoned.
///
/// A lease that has passed is no loss as long as nobody has taken the claim over: its owner may still renew and
/// complete.
pub struct RedisClaim {
    pub(crate) inner: Arc<Inner>,
    pub(crate) key: StorageKey,
    pub(crate) name: Name,
    pub(crate) owner: Owner,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) origin: Option<Origin>,
    /// As it stands, or as it would stand if it had been taken over.
    pub(crate) claim: Bytes,
    /// The claim of somebody else that stands while this one has not taken it over.
    pub(crate) former: Option<Former>,
    pub(crate) ttl: Duration,
    /// A release was sent, and was done or may have been. Shared by twins.
    pub(crate) maybe_released: Arc<AtomicBool>,
}

/// An abandoned claim.
#[derive(Clone)]
pub(crate) struct Former {
    pub(crate) claim: Bytes,
    pub(crate) ends: Ends,
}

impl RedisClaim {
    /// Runs a script that compares what stands with this claim, or with that of `former`, which must be over. Where this
    /// owner's claim stands in another form, since the answer to a renewal was lost, it is compared with that.
    async fn step(
        &self,
        text: &Text,
        mut former: Option<&Former>,
        arguments: &[&[u8]],
        copies: Copies,
    ) -> Result<Stepped, Trouble> {
        let deadline = self.inner.link.deadline();
        let mut expected = former.map_or(&self.claim, |former| &former.claim).clone();
        let mut repeated = false;
        for _ in 0..LOOKS {
            let left = former.and_then(|former| former.ends.left());
            let mut all = Vec::with_capacity(6);
            all.push(&expected[..]);
            all.extend(arguments);
            all.extend(left.as_ref().map(String::as_bytes));
            let mut stepped = self.inner.step(text, &self.name, &all, copies, deadline).await?;
            repeated |= stepped.repeated;
            stepped.repeated = repeated;
            let Said::Stands(found) = &stepped.said else { return Ok(stepped) };
            match wire::read(&self.name, found) {
                Some(Written::Claim(held)) if held.owner == self.owner => {
                    (expected, former) = (found.clone(), None);
                }
                Some(_) => return Ok(stepped),
                None => return Err(Trouble::unreadable(&self.name)),
            }
        }
        // A twin renews it all the time.
        Err(Trouble::Reply)
    }

    async fn keep(&self, record: &Record, ttl: Duration, small: bool) -> Result<(), StoreError> {
        let value = wire::record(&self.name, self.owner, &record.seal(&self.key));
        let (lives, channel) = (milliseconds(ttl).to_string(), self.name.channel());
        let mut arguments: &[&[u8]] = &[&value, lives.as_bytes(), channel.as_bytes(), b"small"];
        if !small {
            arguments = &arguments[..3];
        }
        let step = self.step(&self.inner.scripts.complete, None, arguments, Copies::AsDeclared);
        let Stepped { said, copied, .. } = match step.await {
            // No room for the answer. That there was one is all the more worth keeping, and takes hardly more than the claim.
            Err(trouble) if trouble.is_full() && !small => {
                tracing::warn!(key = %self.key, "Redis is full, so the answer was not kept, only that there was one");
                return Box::pin(self.keep(&record.tombstone(), ttl, true)).await;
            }
            answer => answer?,
        };
        judge(&said)?;
        Ok(copied?)
    }
}

impl Claim for RedisClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let times = Times::new(lease, self.ttl);
        let claim = wire::claim(&self.name, self.owner, times, &self.fingerprint, self.origin.as_ref());
        let lives = times.lives.to_string();
        // Taking over lets a body run, as `begin` does. A renewal that no replica has is made up for by the next one.
        let copies = if self.former.is_some() { Copies::AsDeclared } else { Copies::One };
        let arguments = [&claim[..], lives.as_bytes()];
        let step = self.step(&self.inner.scripts.renew, self.former.as_ref(), &arguments, copies);
        let Stepped { said, copied, .. } = step.await?;
        judge(&said)?;
        copied?;
        (self.claim, self.former) = (claim, None);
        Ok(())
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.keep(&record, ttl, false).await
    }

    async fn release(self) -> Result<(), StoreError> {
        let channel = self.name.channel();
        let earlier = self.maybe_released.swap(true, Ordering::SeqCst);
        // A release that is dropped half-way, or fails, leaves the flag set.
        let stepped = self.step(&self.inner.scripts.release, None, &[channel.as_bytes()], Copies::One).await?;
        match stepped.said {
            // An answer was lost, and this is what that step left, or what somebody else has made of the free key since. The
            // claim is not this owner's, which is all that a release is for.
            Said::Absent | Said::Stands(_) if earlier || stepped.repeated => Ok(()),
            said => {
                self.maybe_released.store(said == Said::Done, Ordering::SeqCst);
                judge(&said)
            }
        }
    }

    fn twin(&self) -> Option<Self> {
        Some(Self {
            inner: Arc::clone(&self.inner),
            key: self.key,
            name: self.name.clone(),
            owner: self.owner,
            fingerprint: self.fingerprint,
            origin: self.origin.clone(),
            claim: self.claim.clone(),
            former: self.former.clone(),
            ttl: self.ttl,
            maybe_released: Arc::clone(&self.maybe_released),
        })
    }
}

/// What the answer of a script means for one who needs the claim.
fn judge(said: &Said) -> Result<(), StoreError> {
    match said {
        Said::Done => Ok(()),
        Said::NotOver | Said::Stands(_) | Said::Absent => Err(StoreError::Lost),
    }
}

impl fmt::Debug for RedisClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClaim").field("key", &self.key).finish_non_exhaustive()
    }
}

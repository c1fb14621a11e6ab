//! A claim in Redis.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idem_runtime::{Claim, Record, StorageKey, StoreError};

use crate::errors::Trouble;
use crate::scripts::microseconds;
use crate::store::{Copies, Inner, Stepped, release_arguments};
use crate::wire::{Name, Owner, Said};

/// A claim in a [`RedisStore`](crate::RedisStore). It lives for its lease, whether this value is there or not, and then it
/// is abandoned.
///
/// A lease that has passed is no loss as long as nobody has taken the claim over: its owner may still renew and
/// complete.
pub struct RedisClaim {
    inner: Arc<Inner>,
    key: StorageKey,
    name: Name,
    owner: Owner,
    /// The owner that left the claim, while this one has not taken it over; then it is `owner`.
    former: Owner,
    ttl: Duration,
    /// A release was sent, and was done or may have been. Shared by twins.
    maybe_released: Arc<AtomicBool>,
}

impl RedisClaim {
    pub(crate) fn new(
        inner: Arc<Inner>,
        key: StorageKey,
        name: Name,
        owner: Owner,
        former: Owner,
        ttl: Duration,
    ) -> Self {
        Self { inner, key, name, owner, former, ttl, maybe_released: Arc::default() }
    }

    /// What the answer of a script means for one who needs the claim.
    fn judge(&self, said: &Said) -> Result<(), StoreError> {
        match said {
            Said::Done => Ok(()),
            Said::Lost | Said::Absent => Err(StoreError::Lost),
            Said::Unreadable => Err(Trouble::Unreadable { name: self.name.short(), why: None }.into()),
            _ => Err(Trouble::Reply.into()),
        }
    }

    async fn keep(&self, record: &Record, ttl: Duration, small: bool) -> Result<(), StoreError> {
        let (sealed, lives) = (record.seal(&self.key), microseconds(ttl));
        let small: &[u8] = if small { b"1" } else { b"0" };
        let arguments = [&self.owner.0, lives.as_bytes(), self.name.channel.as_bytes(), &sealed, small];
        let step = self.inner.step(&self.inner.scripts.complete, &self.name, &arguments, Copies::AsDeclared);
        let Stepped { said, copied, .. } = match step.await {
            // No room for the answer. That there was one is all the more worth keeping, and takes hardly more than the claim.
            Err(trouble) if trouble.is_full() && small == b"0" => {
                tracing::warn!(key = %self.key, "Redis is full, so the answer was not kept, only that there was one");
                return Box::pin(self.keep(&record.tombstone(), ttl, true)).await;
            }
            answer => answer?,
        };
        self.judge(&said)?;
        Ok(copied?)
    }
}

impl Claim for RedisClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        let (lease, ttl) = (microseconds(lease), microseconds(self.ttl));
        let arguments: [&[u8]; 4] = [&self.owner.0, &self.former.0, lease.as_bytes(), ttl.as_bytes()];
        // Taking over lets a body run, as `begin` does. A renewal that no replica has is made up for by the next one.
        let copies = if self.former == self.owner { Copies::One } else { Copies::AsDeclared };
        let Stepped { said, copied, .. } =
            self.inner.step(&self.inner.scripts.renew, &self.name, &arguments, copies).await?;
        self.judge(&said)?;
        copied?;
        self.former = self.owner;
        Ok(())
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.keep(&record, ttl, false).await
    }

    async fn release(self) -> Result<(), StoreError> {
        let arguments = release_arguments(&self.owner, &self.name);
        let earlier = self.maybe_released.swap(true, Ordering::SeqCst);
        // A release that is dropped half-way, or fails, leaves the flag set.
        let stepped = self.inner.step(&self.inner.scripts.release, &self.name, &arguments, Copies::One).await?;
        match stepped.said {
            // An answer was lost, and this is what that step left, or what somebody else has made of the free key since. The
            // claim is not this owner's, which is all that a release is for.
            Said::Absent | Said::Lost if earlier || stepped.repeated => Ok(()),
            said => {
                self.maybe_released.store(said == Said::Done, Ordering::SeqCst);
                self.judge(&said)
            }
        }
    }

    fn twin(&self) -> Option<Self> {
        let mut twin =
            Self::new(Arc::clone(&self.inner), self.key, self.name.clone(), self.owner, self.former, self.ttl);
        twin.maybe_released = Arc::clone(&self.maybe_released);
        Some(twin)
    }
}

impl fmt::Debug for RedisClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClaim").field("key", &self.key).finish_non_exhaustive()
    }
}

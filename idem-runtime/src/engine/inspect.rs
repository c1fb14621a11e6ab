//! What stands under a key, for operators, and how they remove it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Core, Idempotency};
use crate::clock::Timestamp;
use crate::ending::{STEP, within};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, StorageKey};
use crate::origin::Origin;
use crate::scope::Scope;
use crate::store::{Found, Standing, StoreError};

/// How a key stands that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its body runs, as far as the store knows.
    InFlight,
    /// The owner of its claim is gone, and what its body did is unknown. [`Idempotency::settle`] says what retries get.
    OutcomeUnknown,
    /// Its answer is recorded, and replayed.
    Recorded,
    /// Its body ran, but its answer was not kept.
    NotReplayable,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlight => "in flight",
            Self::OutcomeUnknown => "outcome unknown",
            Self::Recorded => "recorded",
            Self::NotReplayable => "not replayable",
        })
    }
}

/// What stands under a key: the answer of [`Idempotency::inspect`].
#[derive(Clone, Debug)]
pub struct Inspection {
    state: State,
    fingerprint: Fingerprint,
    origin: Option<Origin>,
    answer: Option<Bytes>,
    age: Option<Duration>,
    lease_until: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    replays: Option<u64>,
}

impl Inspection {
    /// How the key stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// The fingerprint of the request that claimed the key.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Where the execution came from; `None` where the store has not kept it.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The endpoint, its method and its route's template, such as `POST /orders/{id}`; `None` where it is not known.
    pub fn endpoint(&self) -> Option<&str> {
        self.origin.as_ref().map(Origin::endpoint).filter(|endpoint| !endpoint.is_empty())
    }

    /// When the execution began, by the clock of its process.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.origin.as_ref().map(Origin::began_at)
    }

    /// How long ago the execution began when the key was inspected.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Until when the owner of a claim counts as alive unless it renews its lease. `None` of a record, and where claims live as
    /// long as their owners.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.lease_until
    }

    /// When the key is free: of a record, when it expires; of a claim, when the store gives it up unless somebody renews it or
    /// ends it. `None` where that is not known, or never.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// How often the record was replayed; `None` where nobody counts.
    pub fn replays(&self) -> Option<u64> {
        self.replays
    }

    /// The recorded answer, in the format of the adapter; `None` of anything but [`State::Recorded`].
    pub fn answer(&self) -> Option<&Bytes> {
        self.answer.as_ref()
    }
}

impl Idempotency {
    /// Says what stands under the key of this scope, and changes nothing: no claim, no lease, no count of replays. `None` where
    /// the key is free.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use idem_runtime::{Idempotency, Key, Scope};
    ///
    /// let idempotency = Idempotency::in_memory();
    /// let found = idempotency.inspect(&Scope::GLOBAL, &Key::parse(b"order-1")?).await?;
    /// assert!(found.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::CannotInspect`] where the store never can, [`StoreError::Unreadable`] where what stands there cannot be
    /// read, and [`StoreError::Unavailable`] where the store could not be asked.
    pub async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<Inspection>, StoreError> {
        self.handle.core.inspect(StorageKey::new(scope, key)).await
    }

    /// Removes the record or the claim without an owner under the key of this scope, and says whether there was one: the next
    /// request with the key **runs the body again**, whatever it did before. A claim whose owner is alive stays, since its body
    /// runs.
    ///
    /// To repeat it is safe: the second time there is nothing to remove.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where it is not known whether it was removed. Ask again.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, it may or may not have taken effect.
    pub async fn forget(&self, scope: &Scope, key: &Key) -> Result<bool, StoreError> {
        let key = StorageKey::new(scope, key);
        let forgotten = within(STEP, Arc::clone(&self.handle.core.store).forget(key)).await?;
        tracing::info!(%key, forgotten, "an operator had a key forgotten");
        Ok(forgotten)
    }
}

impl Core {
    pub(super) async fn inspect(&self, key: StorageKey) -> Result<Option<Inspection>, StoreError> {
        let found = within(STEP, Arc::clone(&self.store).inspect(key)).await?;
        found.map_or(Ok(None), |found| self.understand(found))
    }

    fn understand(&self, found: Found) -> Result<Option<Inspection>, StoreError> {
        let Found { standing, mut origin, lease_until, expires_at, replays } = found;
        let now = self.clock.now();
        let claim = |state, fingerprint| (state, fingerprint, None, expires_at);
        let (state, fingerprint, answer, expires_at) = match standing {
            Standing::InFlight(fingerprint) => claim(State::InFlight, fingerprint),
            Standing::Abandoned(fingerprint) => claim(State::OutcomeUnknown, fingerprint),
            Standing::Completed(record) => {
                let content = record.read().map_err(StoreError::unreadable)?;
                if self.duties.expire && content.expires_at <= now {
                    return Ok(None);
                }
                origin = record.origin().or(origin);
                let state = if content.answer.is_some() { State::Recorded } else { State::NotReplayable };
                (state, *record.fingerprint(), content.answer, expires_at.or(Some(content.expires_at)))
            }
        };
        let age = origin.as_ref().map(|origin| now.since(origin.began_at()));
        let expires_at = expires_at.filter(|&expires_at| expires_at != Timestamp::NEVER);
        Ok(Some(Inspection { state, fingerprint, origin, answer, age, lease_until, expires_at, replays }))
    }
}

//! What operators do with a key: inspect it, forget it, and settle an unknown outcome.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::begin::{STORE_TIMEOUT, within};
use super::complete::{ClaimCompletion, ClaimEnd};
use super::decide::{Blocked, Decision, decide};
use super::{Core, Idempotency};
use crate::attempt::{Abandoned, Attempt, Rules};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::{Key, StorageKey};
use crate::outcome::{Outcome, RefusalReason};
use crate::scope::Scope;
use crate::store::{BeginOptions, KeyPage, KeyState, StoredEntry};
use crate::telemetry::claim::ClaimStep;

/// How often a key that changes owners meanwhile is looked at again.
const MAX_ATTEMPTS: usize = 4;
/// How long an operator waits for a store that fails.
const MAX_SETTLING: Duration = Duration::from_secs(30);

/// The state of a key that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyStatus {
    /// Its handler runs, as far as the store knows.
    InFlight,
    /// The owner of its claim disappeared, and what its handler did is unknown. [`Idempotency::settle`] decides what retries
    /// get.
    OutcomeUnknown,
    /// Its response is recorded, and replayed.
    Recorded,
    /// Its handler ran, but its response was not recorded.
    NotReplayable,
}

impl fmt::Display for KeyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InFlight => "in flight",
            Self::OutcomeUnknown => "outcome unknown",
            Self::Recorded => "recorded",
            Self::NotReplayable => "not replayable",
        })
    }
}

/// What [`Idempotency::inspect`] returns of a key that is not free.
#[derive(Clone, Debug)]
pub struct KeyReport {
    status: KeyStatus,
    fingerprint: Fingerprint,
    info: Option<ExecutionInfo>,
    content: Option<Bytes>,
    age: Option<Duration>,
    lease_until: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    replays: Option<u64>,
}

impl KeyReport {
    /// Returns the state of the key.
    pub fn status(&self) -> KeyStatus {
        self.status
    }

    /// Returns the fingerprint of the request that claimed the key.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Returns what is known of the execution. `None` if the store has not kept it.
    pub fn execution_info(&self) -> Option<&ExecutionInfo> {
        self.info.as_ref()
    }

    /// Returns the method and the route template of the endpoint, such as `POST /orders/{id}`. `None` if it is not known.
    pub fn endpoint(&self) -> Option<&str> {
        self.info.as_ref().map(ExecutionInfo::endpoint).filter(|endpoint| !endpoint.is_empty())
    }

    /// Returns when the execution started, by the clock of its process.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.info.as_ref().map(ExecutionInfo::started_at)
    }

    /// Returns how long before the inspection the execution started.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Returns the end of the lease, until which the owner of a claim counts as alive. `None` for a record, and if the store does not use
    /// leases.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.lease_until
    }

    /// Returns when the key becomes free: when a record expires, or when the store drops a claim that is not renewed. `None` if
    /// that is not known, or never happens.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns how often the record was replayed, or would have been in shadow mode. `None` if the store does not count.
    pub fn replays(&self) -> Option<u64> {
        self.replays
    }

    /// Returns the recorded bytes, in the format of the adapter. `None` unless the key is [`KeyStatus::Recorded`].
    pub fn content(&self) -> Option<&Bytes> {
        self.content.as_ref()
    }
}

/// What [`Idempotency::settle`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The outcome was unknown, and is known now.
    Now,
    /// The key already has the record that this would have left, most likely from an earlier call.
    Already,
}

/// Why a key was not settled. Nothing was changed, unless it says that this is not known.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SettleError {
    /// The key is free: the next request runs the handler.
    Free,
    /// The outcome is not unknown: the handler runs, or the key has another record.
    NotUnknown(KeyStatus),
    /// A record with a TTL of zero would leave the key free. To let a retry run the handler, settle with [`Outcome::Release`].
    ZeroTtl,
    /// The store failed. Whether the key was settled is not known, so inspect it. A store that cannot be inspected has settled nothing.
    Store(StoreError),
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("the key is free, so there is nothing to settle"),
            Self::NotUnknown(KeyStatus::OutcomeUnknown) => {
                f.write_str("another execution claimed the key meanwhile; inspect it and try again")
            }
            Self::NotUnknown(status) => write!(f, "the key is {status}, and only an unknown outcome can be settled"),
            Self::ZeroTtl => f.write_str("the TTL of a record is zero; to let a retry run, settle it as released"),
            Self::Store(StoreError::CannotInspect) => {
                f.write_str("this store cannot be inspected, so nothing was settled")
            }
            Self::Store(_) => f.write_str("the store failed, and whether the key was settled is not known; inspect it"),
        }
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            Self::Free | Self::NotUnknown(_) | Self::ZeroTtl => None,
        }
    }
}

impl From<StoreError> for SettleError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Idempotency {
    /// Returns the state of a key without changing it, or `None` if the key is free. It makes no claim, renews no lease, and
    /// does not count as a replay.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use idem_runtime::{Idempotency, Key, Scope};
    ///
    /// let idempotency = Idempotency::in_memory();
    /// let report = idempotency.inspect(&Scope::GLOBAL, &Key::parse(b"order-1")?).await?;
    /// assert!(report.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::CannotInspect`] if the store does not support it, [`StoreError::Unreadable`] if the value cannot be read,
    /// and [`StoreError::Unavailable`] if the store could not be reached.
    pub async fn inspect(&self, scope: &Scope, key: &Key) -> Result<Option<KeyReport>, StoreError> {
        self.inspect_key(self.storage_key(scope, key)).await
    }

    pub(crate) async fn inspect_key(&self, key: StorageKey) -> Result<Option<KeyReport>, StoreError> {
        self.handle.core.inspect(key).await
    }

    /// Removes the record or the abandoned claim of a key, and returns whether there was one. The next request with the key
    /// **runs the handler again**, whatever it did before. A claim whose owner is alive stays, since its handler runs.
    ///
    /// To repeat it is safe: the second time there is nothing to remove.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is not known whether it was removed. Call it again.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, it may or may not have taken effect.
    pub async fn forget(&self, scope: &Scope, key: &Key) -> Result<bool, StoreError> {
        self.forget_key(self.storage_key(scope, key)).await
    }

    pub(crate) async fn forget_key(&self, key: StorageKey) -> Result<bool, StoreError> {
        let forgotten = within(STORE_TIMEOUT, Arc::clone(&self.handle.core.store).forget(key)).await?;
        if forgotten {
            tracing::info!(%key, "an operator had a key forgotten");
        }
        Ok(forgotten)
    }

    /// Decides an unknown outcome, once an operator has found out what happened: retries get the record
    /// ([`Outcome::Record`], in the adapter's format), or are refused because there is none ([`Outcome::NotReplayable`]), or run
    /// the handler again ([`Outcome::Release`]).
    ///
    /// The record lives for the TTL of its endpoint from now on, or for a day if the claim does not have that TTL.
    /// [`settle_for`](Self::settle_for) sets another one. The record keeps the info of the execution whose outcome was unknown.
    ///
    /// Only an unknown outcome is settled. If an execution hangs, [`revoke`](Self::revoke) its claim first. The call takes the claim over,
    /// as a second run does. So if two operators settle the same key, one succeeds. An owner that was only slow completes before that, or
    /// not at all. One call settles one execution: the one that it finds first. It is safe to repeat a call with a record, or as not
    /// replayable. After a release the key is free for another execution, whose outcome may become unknown in turn. Inspect the key again
    /// before you settle that.
    ///
    /// ```
    /// # async fn example(idempotency: idem_runtime::Idempotency, key: idem_runtime::Key) {
    /// use idem_runtime::{Outcome, Scope, SettleError};
    ///
    /// // The order is not in the database, so it may be placed again.
    /// match idempotency.settle(&Scope::GLOBAL, &key, Outcome::Release).await {
    ///     Ok(_) => println!("a retry runs the handler"),
    ///     Err(SettleError::NotUnknown(status)) => println!("no need: the key is {status}"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// The state of the key, or the failure of the store.
    ///
    /// # Cancel safety
    /// Once the future was polled, nothing that happens to it stops the call.
    pub async fn settle(&self, scope: &Scope, key: &Key, outcome: Outcome) -> Result<Settled, SettleError> {
        self.settle_key(self.storage_key(scope, key), outcome, None).await
    }

    /// Settles an unknown outcome as [`settle`](Self::settle) does, with a record that lives for `ttl` from now.
    ///
    /// # Errors
    /// As for [`settle`](Self::settle), and [`SettleError::ZeroTtl`].
    pub async fn settle_for(
        &self,
        scope: &Scope,
        key: &Key,
        outcome: Outcome,
        ttl: Duration,
    ) -> Result<Settled, SettleError> {
        self.settle_key(self.storage_key(scope, key), outcome, Some(ttl)).await
    }

    /// Settles an unknown outcome as [`settle`](Self::settle) does, for a key that [`inspect_unknown`](Self::inspect_unknown) has found.
    ///
    /// # Errors
    /// As for [`settle`](Self::settle).
    pub async fn settle_found(&self, key: &StorageKey, outcome: Outcome) -> Result<Settled, SettleError> {
        self.settle_key(*key, outcome, None).await
    }

    /// Returns a page of the keys whose outcome is unknown: after a crash, say. `from` is the [`next`](KeyPage::next) of the page
    /// before. A page covers a limited part of the store, so it may be empty although more follow. A key may be on two pages.
    ///
    /// It lists what is in the store, whatever the [namespace](crate::IdempotencyBuilder::namespace): storage keys are hashes, so the
    /// [endpoint](KeyReport::endpoint) tells whose they are. A claim counts as in flight until its lease has expired.
    ///
    /// ```
    /// # async fn example(idempotency: idem_runtime::Idempotency) -> Result<(), idem_runtime::StoreError> {
    /// let mut next = None;
    /// loop {
    ///     let page = idempotency.inspect_unknown(next).await?;
    ///     for (key, report) in &page.keys {
    ///         println!("{key}: {:?}, started {:?}", report.endpoint(), report.started_at());
    ///     }
    ///     next = page.next;
    ///     if next.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::CannotInspect`] if the store does not support it, and [`StoreError::Unavailable`] if it could not be reached.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn inspect_unknown(&self, from: Option<Bytes>) -> Result<KeyPage<KeyReport>, StoreError> {
        let core = &self.handle.core;
        let page = within(STORE_TIMEOUT, Arc::clone(&core.store).inspect_unknown(from)).await?;
        let mut keys = Vec::with_capacity(page.keys.len());
        for (key, entry) in page.keys {
            keys.extend(core.report(entry)?.map(|report| (key, report)));
        }
        Ok(KeyPage::new(keys, page.next))
    }

    /// Takes the claim of a key away from its execution, which hangs, and returns whether there was one. From then on the outcome is
    /// unknown: retries are told so, and [`settle`](Self::settle) decides what they get. Under
    /// [`Abandoned::Rerun`] a retry runs the handler again.
    ///
    /// The handler is not stopped, and what it returns later is not recorded. In a store outside the process its
    /// [lease](crate::Lease) is lost. An execution with a transaction keeps its claim; end its database session instead.
    ///
    /// To repeat it is safe.
    ///
    /// # Errors
    /// [`StoreError::CannotRevoke`] if the store does not support it, and [`StoreError::Unavailable`] if it is not known whether the
    /// claim was taken away. Call it again.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, it may or may not have taken effect.
    pub async fn revoke(&self, scope: &Scope, key: &Key) -> Result<bool, StoreError> {
        let key = self.storage_key(scope, key);
        let revoked = within(STORE_TIMEOUT, Arc::clone(&self.handle.core.store).revoke(key)).await?;
        if revoked {
            tracing::info!(%key, "an operator took a claim away from its execution");
        }
        Ok(revoked)
    }

    pub(crate) async fn settle_key(
        &self,
        key: StorageKey,
        outcome: Outcome,
        ttl: Option<Duration>,
    ) -> Result<Settled, SettleError> {
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(SettleError::ZeroTtl);
        }
        let core = &self.handle.core;
        let settling = Arc::clone(core).settle(key, outcome, ttl);
        core.spawn(settling).await.unwrap_or_else(|_| {
            Err(SettleError::Store(StoreError::unavailable("the task that settled the key was torn down")))
        })
    }
}

impl Core {
    async fn inspect(&self, key: StorageKey) -> Result<Option<KeyReport>, StoreError> {
        let entry = within(STORE_TIMEOUT, Arc::clone(&self.store).inspect(key)).await?;
        entry.map_or(Ok(None), |entry| self.report(entry))
    }

    pub(super) fn report(&self, entry: StoredEntry) -> Result<Option<KeyReport>, StoreError> {
        let StoredEntry { state, mut info, lease_until, expires_at, replays } = entry;
        let now = self.clock.now();
        let (status, fingerprint, content, expires_at) = match state {
            KeyState::InFlight(fingerprint) => (KeyStatus::InFlight, fingerprint, None, expires_at),
            KeyState::Abandoned(fingerprint) => (KeyStatus::OutcomeUnknown, fingerprint, None, expires_at),
            KeyState::Completed(record) => {
                let read = record.read().map_err(StoreError::unreadable)?;
                if !self.capabilities.judges_expiry && read.expires_at <= now {
                    return Ok(None);
                }
                info = record.execution_info().or(info);
                let status = if read.content.is_some() { KeyStatus::Recorded } else { KeyStatus::NotReplayable };
                (status, *record.fingerprint(), read.content, expires_at.or(Some(read.expires_at)))
            }
        };
        let age = info.as_ref().map(|info| now.since(info.started_at()));
        let expires_at = expires_at.filter(|&expires_at| expires_at != Timestamp::NEVER);
        Ok(Some(KeyReport { status, fingerprint, info, content, age, lease_until, expires_at, replays }))
    }

    async fn settle(
        self: Arc<Self>,
        key: StorageKey,
        outcome: Outcome,
        ttl: Option<Duration>,
    ) -> Result<Settled, SettleError> {
        // The execution that the operator has decided about; a later one is left alone.
        let mut decided = None;
        for _ in 0..MAX_ATTEMPTS {
            let found = self.inspect(key).await?.ok_or(SettleError::Free)?;
            let execution = found.execution_info().map(ExecutionInfo::id);
            if *decided.get_or_insert(execution) != execution {
                return Err(SettleError::NotUnknown(found.status()));
            }
            if found.status() != KeyStatus::OutcomeUnknown {
                return if is_already(&found, &outcome) {
                    Ok(Settled::Already)
                } else {
                    Err(SettleError::NotUnknown(found.status()))
                };
            }
            let ttl = ttl.or(found.execution_info().map(ExecutionInfo::ttl)).unwrap_or(Rules::DEFAULT.ttl);
            let rules = Rules { abandoned: Abandoned::Rerun, ttl, ..Rules::DEFAULT };
            let attempt = Attempt::new(key, *found.fingerprint(), rules);
            let mut options = BeginOptions::new(self.lease, ttl);
            options.info = found.execution_info().cloned();
            let beginning = self.begin_with(&attempt, options);
            // An operator is no request that found an abandoned claim, so this is not counted.
            let mut claim = match decide(&attempt, self.begun_in_time(&attempt, beginning, Instant::now()).await) {
                Decision::TakeOver(claim) => claim,
                Decision::Run(claim) => {
                    ClaimStep::Granted.report(&key);
                    self.release(&attempt, claim);
                    return Err(SettleError::Free);
                }
                Decision::Blocked(Blocked::Refuse(RefusalReason::StoreUnavailable(error))) => return Err(error.into()),
                // It has changed since, and the next look tells how.
                _ => continue,
            };
            // The claim may be that of a later execution. If it is not yet, `renew` fails once it is.
            let claimed = self.inspect(key).await?;
            if claimed.is_none_or(|claimed| claimed.execution_info().map(ExecutionInfo::id) != execution) {
                continue;
            }
            match within(STORE_TIMEOUT, claim.renew(self.lease)).await {
                Ok(()) => ClaimStep::TakenOver.report(&key),
                // Another request or operator was first.
                Err(StoreError::Lost) => continue,
                Err(error) => return Err(error.into()),
            }
            let outcome_name = name(&outcome);
            let end = ClaimEnd::new(outcome, attempt.fingerprint, found.execution_info(), ttl, &*self.clock);
            let lease = (!self.capabilities.claims_live_with_owner).then_some(self.lease);
            let completion = ClaimCompletion::begin(key, claim, end, lease, ttl).within(MAX_SETTLING);
            match completion.finish(Arc::clone(&self)).await {
                Ok(()) => {}
                // It took so long that another request took over the claim.
                Err(StoreError::Lost) => {
                    let found = self.inspect(key).await?.ok_or(SettleError::Free)?;
                    return Err(SettleError::NotUnknown(found.status()));
                }
                Err(error) => return Err(error.into()),
            }
            tracing::info!(%key, endpoint = found.endpoint(), outcome = outcome_name, "an operator settled an unknown outcome");
            return Ok(Settled::Now);
        }
        Err(StoreError::unavailable("the key changed owners again and again").into())
    }
}

/// Returns the name of an outcome in a log.
fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Record(_) => "recorded",
        Outcome::NotReplayable => "not replayable",
        Outcome::Release => "released",
    }
}

/// Returns whether the key has what `outcome` would leave.
fn is_already(found: &KeyReport, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Record(builder) => found.content().is_some_and(|content| *content == builder.as_slice()),
        Outcome::NotReplayable => found.status() == KeyStatus::NotReplayable,
        Outcome::Release => false,
    }
}

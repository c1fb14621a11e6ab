//! The end of a claim: completed or released, with repeated tries if the store fails.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::begin::{STORE_TIMEOUT, within};
use super::dyn_store::{BoxClaim, StoreFuture};
use super::renew::renewal_timeout;
use super::{Core, poll_now};
use crate::attempt::Attempt;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::outcome::Outcome;
use crate::record::Record;
use crate::remote::jitter;
use crate::store::{KeyState, StoredEntry};
use crate::telemetry::claim::ClaimStep;
use crate::telemetry::counters;

/// The pause before the second try; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// How a claim ends.
#[derive(Clone)]
pub(super) enum ClaimEnd {
    /// With this record, which lives this long.
    Complete(Record, Duration),
    /// As if it had never been granted.
    Release,
}

impl ClaimEnd {
    /// The end of an execution with this outcome: a record that lives for `ttl` from now, or a release.
    pub(super) fn new(
        outcome: Outcome,
        fingerprint: Fingerprint,
        info: Option<&ExecutionInfo>,
        ttl: Duration,
        clock: &dyn Clock,
    ) -> Self {
        let expires_at = || clock.now().after(ttl);
        match outcome {
            Outcome::Record(builder) => {
                Self::Complete(Record::with_content(fingerprint, builder, expires_at(), info), ttl)
            }
            Outcome::NotReplayable => Self::Complete(Record::not_replayable(fingerprint, expires_at(), info), ttl),
            Outcome::Release => Self::Release,
        }
    }

    /// Returns the content of the record, which shares its memory.
    pub(super) fn content(&self) -> Option<Bytes> {
        match self {
            Self::Complete(record, _) => record.read().ok().and_then(|read| read.content),
            Self::Release => None,
        }
    }

    pub(super) fn step(&self) -> ClaimStep {
        match self {
            Self::Complete(..) => ClaimStep::Completed,
            Self::Release => ClaimStep::Released,
        }
    }

    /// Asks the store, and returns what is needed to ask again.
    pub(super) fn ask(self, claim: BoxClaim) -> (StoreFuture<'static, ()>, Option<(BoxClaim, Self)>) {
        let again = claim.try_clone().map(|clone| (clone, self.clone()));
        let asked = match self {
            Self::Complete(record, ttl) => claim.complete(record, ttl),
            Self::Release => claim.release(),
        };
        (asked, again)
    }
}

/// A claim that is being completed or released.
pub(super) struct ClaimCompletion {
    key: StorageKey,
    step: ClaimStep,
    asked: StoreFuture<'static, ()>,
    /// `None` if the store cannot be asked again.
    again: Option<(BoxClaim, ClaimEnd)>,
    /// What is recorded if it succeeds. `None` if nothing is, and if the store loses no replies.
    record: Option<Record>,
    /// The lease to renew between two tries.
    lease: Option<Duration>,
    /// How long the store is asked again.
    limit: Duration,
}

impl ClaimCompletion {
    /// Asks the store, and prepares to ask again until a claim with this lease and TTL has expired.
    pub(super) fn begin(
        key: StorageKey,
        claim: BoxClaim,
        end: ClaimEnd,
        lease: Option<Duration>,
        ttl: Duration,
    ) -> Self {
        let record = match &end {
            ClaimEnd::Complete(record, _) if lease.is_some() => Some(record.clone()),
            _ => None,
        };
        let step = end.step();
        let (asked, again) = end.ask(claim);
        Self { key, step, asked, again, record, lease, limit: lease.unwrap_or_default().saturating_add(ttl) }
    }

    /// Releases the claim of an attempt under which nothing has happened. It is not renewed meanwhile.
    pub(super) fn release(attempt: &Attempt, claim: BoxClaim, lease: Duration) -> Self {
        Self::begin(attempt.key, claim, ClaimEnd::Release, None, lease.saturating_add(attempt.rules.ttl))
    }

    /// Asks the store again for this long only.
    pub(super) fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Returns whether the claim has ended already, as it does in memory.
    pub(super) fn is_done_at_once(&mut self) -> bool {
        match poll_now(&mut self.asked) {
            None => false,
            Some(Ok(())) => {
                self.step.report(&self.key);
                true
            }
            Some(Err(error)) => {
                self.asked = StoreFuture::new(ready(Err(error)));
                false
            }
        }
    }

    /// Waits for the claim to end, asks the store again if it fails, and renews the claim between two tries. A claim that is
    /// to be completed is never released here: its handler ran.
    pub(super) async fn finish(self, core: Arc<Core>) -> Result<(), StoreError> {
        let Self { key, step, mut asked, mut again, record, lease, limit } = self;
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut attempts = 1_u32;
        let end_claim = if matches!(step, ClaimStep::Released) { "release" } else { "complete" };
        loop {
            // A claim that can be renewed is, before a try without a reply has cost its lease.
            let time = lease.filter(|_| again.is_some()).map_or(STORE_TIMEOUT, renewal_timeout);
            let Err(error) = within(time, asked).await else {
                step.report(&key);
                return Ok(());
            };
            let cause = error.cause();
            let may_repeat = started.elapsed() < limit && !matches!(error, StoreError::Lost);
            let Some((mut claim, end)) = again.filter(|_| may_repeat) else {
                if let Some(record) = record
                    && core.is_recorded(key, &record).await
                {
                    step.report(&key);
                    return Ok(());
                }
                if matches!(error, StoreError::Lost) {
                    tracing::error!(%key, claim = "lost", %error, cause, attempts, "the claim was lost before its end was recorded; what retries get is up to its new owner");
                } else {
                    tracing::error!(%key, claim = "unconfirmed", %error, cause, attempts, "could not {end_claim} the claim; retries are refused with `outcome unknown` until it expires");
                }
                counters::completion_failed();
                return Err(error);
            };
            if attempts.is_power_of_two() {
                tracing::warn!(%key, %error, cause, attempts, "could not {end_claim} the claim yet; trying again");
            }
            attempts = attempts.saturating_add(1);
            if let Some(lease) = lease {
                pause = pause.min(lease / 3);
                // The result does not matter: the next try reports the state of the claim.
                let _ = within(renewal_timeout(lease), claim.renew(lease)).await;
            }
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(MAX_PAUSE);
            (asked, again) = end.ask(claim);
        }
    }
}

impl Core {
    /// Returns whether the store has this record: the reply to a completion may have been lost.
    async fn is_recorded(&self, key: StorageKey, record: &Record) -> bool {
        let entry = within(STORE_TIMEOUT, Arc::clone(&self.store).inspect(key)).await;
        let Ok(Some(StoredEntry { state: KeyState::Completed(found), .. })) = entry else { return false };
        let ids = [record, &found].map(|record| record.execution_info().map(|info| info.id()));
        // A store without room has left out the content. A record that an operator settled has the same id, and other content.
        found == *record || (ids[0].is_some() && ids[0] == ids[1] && found == record.tombstone())
    }
}

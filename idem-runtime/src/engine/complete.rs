//! The end of a claim: completed or released, with repeated tries if the store fails.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::begin::{STORE_TIMEOUT, within};
use super::dyn_store::{BoxClaim, StoreFuture};
use super::poll_now;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::outcome::Outcome;
use crate::record::Record;
use crate::telemetry::counters;

/// How often a completion is tried, and the pause before the second try; it doubles up to [`MAX_PAUSE`].
const MAX_ATTEMPTS: u32 = 12;
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
    asked: StoreFuture<'static, ()>,
    /// `None` if the store cannot be asked again.
    again: Option<(BoxClaim, ClaimEnd)>,
    /// The lease to renew between two tries.
    lease: Option<Duration>,
}

impl ClaimCompletion {
    /// Asks the store.
    pub(super) fn begin(key: StorageKey, claim: BoxClaim, end: ClaimEnd, lease: Option<Duration>) -> Self {
        let (asked, again) = end.ask(claim);
        Self { key, asked, again, lease }
    }

    /// Releases a claim under which nothing has happened.
    pub(super) fn release(key: StorageKey, claim: BoxClaim) -> Self {
        Self::begin(key, claim, ClaimEnd::Release, None)
    }

    /// Returns whether the claim has ended already, as it does in memory.
    pub(super) fn is_done_at_once(&mut self) -> bool {
        match poll_now(&mut self.asked) {
            None => false,
            Some(Ok(())) => true,
            Some(Err(error)) => {
                self.asked = StoreFuture::new(ready(Err(error)));
                false
            }
        }
    }

    /// Waits for the claim to end, asks the store again if it fails, and renews the claim between two tries. A claim that is
    /// to be completed is never released here: its handler ran.
    pub(super) async fn finish(self) -> Result<(), StoreError> {
        let Self { key, mut asked, mut again, lease } = self;
        let mut pause = FIRST_PAUSE;
        let mut attempts = 1;
        loop {
            let Err(error) = within(STORE_TIMEOUT, asked).await else { return Ok(()) };
            let cause = error.cause();
            let may_repeat = attempts < MAX_ATTEMPTS && !matches!(error, StoreError::Lost);
            let Some((mut claim, end)) = again.filter(|_| may_repeat) else {
                tracing::error!(%key, %error, cause, attempts, "could not complete the claim; retries are refused with `outcome unknown` until it expires");
                counters::completion_failed();
                return Err(error);
            };
            tracing::warn!(%key, %error, cause, attempts, "could not complete the claim yet; trying again");
            attempts += 1;
            if let Some(lease) = lease {
                pause = pause.min(lease / 3);
                // The result does not matter: the next try reports the state of the claim.
                let _ = within(STORE_TIMEOUT, claim.renew(lease)).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            (asked, again) = end.ask(claim);
        }
    }

    /// As [`finish`](Self::finish), if no caller needs the result. Failures are logged.
    pub(super) async fn finish_logged(self) {
        let _ = self.finish().await;
    }
}

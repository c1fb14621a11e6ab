//! The end of a claim: recorded or given back, again and again if need be.

use std::future::{Future, ready};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::counted;
use crate::erased::{Answering, BoxClaim};
use crate::execution::{Outcome, at_once};
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::origin::Origin;
use crate::record::Record;
use crate::store::StoreError;

/// How long a store may take for one step. A step that takes longer is taken for one that failed.
pub(crate) const STEP: Duration = Duration::from_secs(5);
/// How often a completion is tried, and the pause before the second try; it doubles up to [`LONGEST_PAUSE`].
const TRIES: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A claim on its way to its end.
pub(crate) struct Ending {
    key: StorageKey,
    /// What the store has been asked.
    asked: Answering<'static, ()>,
    /// To ask once more with, where the store can be.
    again: Option<(BoxClaim, End)>,
    /// The lease to renew between two tries.
    lease: Option<Duration>,
}

/// How a claim ends.
#[derive(Clone)]
pub(crate) enum End {
    /// With this record, which lives for so long.
    Complete(Record, Duration),
    /// As if it had never been.
    Release,
}

impl End {
    /// The end of an execution with this outcome: a record that lives for `ttl` from now, or nothing.
    pub(crate) fn of(
        outcome: Outcome,
        fingerprint: Fingerprint,
        origin: Option<&Origin>,
        ttl: Duration,
        clock: &dyn Clock,
    ) -> Self {
        let expires_at = || clock.now().after(ttl);
        match outcome {
            Outcome::Answer(draft) => Self::Complete(Record::answer(fingerprint, draft, expires_at(), origin), ttl),
            Outcome::NotReplayable => Self::Complete(Record::not_replayable(fingerprint, expires_at(), origin), ttl),
            Outcome::Release => Self::Release,
        }
    }

    /// Asks the store, and says what to ask once more with.
    fn ask(self, claim: BoxClaim) -> (Answering<'static, ()>, Option<(BoxClaim, Self)>) {
        let again = claim.twin().map(|twin| (twin, self.clone()));
        let asked = match self {
            Self::Complete(record, ttl) => claim.complete(record, ttl),
            Self::Release => claim.release(),
        };
        (asked, again)
    }
}

impl Ending {
    /// Asks the store.
    pub(crate) fn begin(key: StorageKey, claim: BoxClaim, end: End, lease: Option<Duration>) -> Self {
        let (asked, again) = end.ask(claim);
        Self { key, asked, again, lease }
    }

    /// Whether the claim ends at once, as it does in memory.
    pub(crate) async fn is_over(&mut self) -> bool {
        match at_once(&mut self.asked).await {
            None => false,
            Some(Ok(())) => true,
            Some(Err(error)) => {
                self.asked = Answering::new(ready(Err(error)));
                false
            }
        }
    }

    /// Waits for the claim to end, asks again and again if need be, and renews the claim between two tries. A claim that is
    /// to be completed is never released here: its body ran.
    pub(crate) async fn finish(self) -> Result<(), StoreError> {
        let Self { key, mut asked, mut again, lease } = self;
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let Err(error) = step(asked).await else { return Ok(()) };
            let cause = error.cause();
            let Some((mut claim, end)) = again.filter(|_| tries < TRIES && !matches!(error, StoreError::Lost)) else {
                tracing::error!(%key, %error, cause, tries, "the end of a claim could not be recorded; it stays, and its outcome is unknown to retries");
                counted::completion_failed();
                return Err(error);
            };
            tracing::warn!(%key, %error, cause, tries, "the end of a claim could not be recorded; it stays meanwhile, and the store is asked again");
            tries += 1;
            if let Some(lease) = lease {
                pause = pause.min(lease / 3);
                // Its answer changes nothing: the next try says what became of the claim.
                let _ = step(claim.renew(lease)).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            (asked, again) = end.ask(claim);
        }
    }
}

/// Gives a claim back under which nothing has happened.
pub(crate) async fn release(key: StorageKey, claim: BoxClaim) {
    // Whatever went wrong was logged; nobody waits for it.
    let _ = Ending::begin(key, claim, End::Release, None).finish().await;
}

/// One step of a store, in time.
async fn step<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    within(STEP, work).await
}

/// A step of a store that must not take longer than `time`.
pub(crate) async fn within<T>(
    time: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(time, work).await.unwrap_or_else(|_| Err(silent(time)))
}

/// The error of a store that did not answer in time.
pub(crate) fn silent(time: Duration) -> StoreError {
    StoreError::unavailable(format!("no answer from the store within {time:?}"))
}

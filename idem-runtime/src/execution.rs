//! One run of the body, from its claim to the end of the claim.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::engine::Attempt;
use crate::erased::BoxClaim;
use crate::key::StorageKey;
use crate::record::{Draft, Record};
use crate::store::StoreError;

/// How long a slow store may hold the answer back. After that the client gets it, and the completion goes on.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a store may take for one step. A step that takes longer is taken for one that failed.
pub(crate) const STEP: Duration = Duration::from_secs(5);
/// How often a completion is tried, and the pause before the second try; it doubles up to [`LONGEST_PAUSE`].
const TRIES: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A body that ended: its answer, and what is to be remembered of it.
#[derive(Debug)]
pub struct Ended<T> {
    /// The answer for whoever waits.
    pub response: T,
    /// What to remember.
    pub recording: Recording,
}

/// What is to be remembered, and when that is known.
pub enum Recording {
    /// Known. The claim ends first, and then the answer goes out, so that a retry finds the record.
    Done(Outcome),
    /// Known once the answer has been streamed. The answer goes out at once, and the future records it as it flows.
    Live(Pin<Box<dyn Future<Output = Recorded> + Send>>),
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(outcome) => f.debug_tuple("Done").field(outcome).finish(),
            Self::Live(_) => f.write_str("Live(..)"),
        }
    }
}

/// The end of a live recording.
pub struct Recorded {
    /// What to remember.
    pub outcome: Outcome,
    /// Dropped when the claim has ended: what keeps the stream to the client from ending before a retry finds the record.
    pub hold: Option<Box<dyn Send>>,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

/// How a claim ends.
#[derive(Debug)]
pub enum Outcome {
    /// With this answer, to be replayed.
    Answer(Draft),
    /// The body ran, but its answer cannot be replayed: a retry is refused, and the body does not run again.
    NotReplayable,
    /// As if the body had not run: a retry runs it again. Only where the policy or the handler asks for it in writing.
    Release,
}

/// A claim, and what is needed to run the body under it.
pub(crate) struct Execution {
    pub(crate) attempt: Attempt,
    pub(crate) claim: BoxClaim,
    /// `None` where the store's claims need no renewal.
    pub(crate) lease: Option<Duration>,
    pub(crate) clock: Arc<dyn Clock>,
    /// One of the places that bound how many bodies run at once.
    pub(crate) _place: OwnedSemaphorePermit,
}

impl Execution {
    /// Runs the body to its end, hands its answer over, and ends the claim. Nobody may be listening any more.
    pub(crate) async fn run<T>(mut self, body: impl Future<Output = Ended<T>>, reply: oneshot::Sender<T>) {
        let Ended { response, recording } = self.keep(body).await;
        match recording {
            Recording::Done(outcome) => self.end(outcome, || drop(reply.send(response))).await,
            Recording::Live(recorded) => {
                let _ = reply.send(response);
                let Recorded { outcome, hold } = self.keep(recorded).await;
                self.end(outcome, || drop(hold)).await;
            }
        }
    }

    /// Ends the claim, and then lets the caller go: after [`PATIENCE`] at the latest, since a slow store is no reason to
    /// withhold an answer that is there.
    async fn end(self, outcome: Outcome, let_go: impl FnOnce()) {
        let mut end = pin!(async {
            match outcome {
                Outcome::Release => self.release().await,
                outcome => {
                    let record = self.record(outcome);
                    self.complete(record).await;
                }
            }
        });
        let in_time = at_once(end.as_mut()).await.is_some() || timeout(PATIENCE, end.as_mut()).await.is_ok();
        let_go();
        if !in_time {
            end.await;
        }
    }

    /// Awaits `work` and renews the lease meanwhile. Work that is ready at once costs no timer.
    async fn keep<R>(&mut self, work: impl Future<Output = R>) -> R {
        let mut work = pin!(work);
        let Some(lease) = self.lease else { return work.await };
        if let Some(result) = at_once(work.as_mut()).await {
            return result;
        }
        let mut lost = false;
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = sleep(lease / 3), if !lost => {}
            }
            // The body goes on while the store answers, and whatever it answers: it has started.
            let renewed = tokio::select! {
                biased;
                result = &mut work => return result,
                renewed = step(self.claim.renew(lease)) => renewed,
            };
            match renewed {
                Ok(()) => {}
                Err(StoreError::Lost) => {
                    lost = true;
                    tracing::error!(key = %self.attempt.key, "the lease was lost while the body runs: it took longer than the lease without a renewal, or the store forgot the claim");
                }
                Err(error) => {
                    tracing::warn!(key = %self.attempt.key, %error, "the lease could not be renewed; trying again");
                }
            }
        }
    }

    fn record(&self, outcome: Outcome) -> Record {
        let Attempt { fingerprint, rules, .. } = self.attempt;
        let expires_at = self.clock.now().after(rules.ttl);
        match outcome {
            Outcome::Answer(draft) => Record::answer(fingerprint, draft, expires_at),
            Outcome::NotReplayable | Outcome::Release => Record::not_replayable(fingerprint, expires_at),
        }
    }

    /// Completes the claim, again and again if need be, and renews it between two tries. It is never released here: the
    /// body ran.
    async fn complete(self, record: Record) {
        let Attempt { key, rules, .. } = self.attempt;
        let mut claim = self.claim;
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            let twin = claim.twin();
            let record = record.clone();
            match step(async move { claim.complete(record, rules.ttl).await }).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(%key, %error, source = error_source(&error), "the answer could not be recorded; the claim stays");
                    match twin {
                        Some(twin) if !matches!(error, StoreError::Lost) => claim = twin,
                        _ => break,
                    }
                }
            }
            if let Some(lease) = self.lease {
                pause = pause.min(lease / 3);
                // Its answer changes nothing: the next try says what became of the claim.
                let _ = step(claim.renew(lease)).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tracing::error!(%key, "the answer was sent but not recorded: the outcome under this key is unknown");
    }

    async fn release(self) {
        release(self.attempt.key, self.claim).await;
    }
}

/// Gives a claim back under which nothing has happened, or nothing that counts.
pub(crate) async fn release(key: StorageKey, claim: BoxClaim) {
    let twin = claim.twin();
    let mut released = step(async move { claim.release().await }).await;
    if let (Err(StoreError::Unavailable(_)), Some(twin)) = (&released, twin) {
        released = step(async move { twin.release().await }).await;
    }
    if let Err(error) = released {
        tracing::error!(%key, %error, source = error_source(&error), "a claim could not be released; its key stays in flight");
    }
}

/// One step of a store: in time, and without its panics, which would take the body's answer with them.
pub(crate) async fn step<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let mut work = pin!(without_panics(work));
    if let Some(result) = at_once(work.as_mut()).await {
        return result;
    }
    let in_time = timeout(STEP, work).await;
    in_time.unwrap_or_else(|_| Err(StoreError::unavailable(format!("no answer from the store within {STEP:?}"))))
}

/// A panic of the store as an error.
pub(crate) async fn without_panics<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)))
            .unwrap_or_else(|_panic| Poll::Ready(Err(StoreError::unavailable("the store panicked"))))
    })
    .await
}

/// The result of `work` if it has one now.
async fn at_once<F: Future>(mut work: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn error_source(error: &StoreError) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}

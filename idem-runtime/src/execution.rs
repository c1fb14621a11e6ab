//! One run of the body, from its claim to the end of the claim.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::clock::Clock;
use crate::engine::Attempt;
use crate::erased::BoxClaim;
use crate::record::{Draft, Record};
use crate::store::StoreError;

/// How long a slow store may hold the answer back. After that the client gets it, and the completion goes on.
const PATIENCE: Duration = Duration::from_secs(1);
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
            Recording::Done(Outcome::Release) => {
                self.release().await;
                let _ = reply.send(response);
            }
            Recording::Done(outcome) => {
                let record = self.record(outcome);
                let mut complete = pin!(self.complete(record));
                let in_time = at_once(complete.as_mut()).await.is_some()
                    || tokio::time::timeout(PATIENCE, complete.as_mut()).await.is_ok();
                let _ = reply.send(response);
                if !in_time {
                    complete.await;
                }
            }
            Recording::Live(recorded) => {
                let _ = reply.send(response);
                let Recorded { outcome, hold } = self.keep(recorded).await;
                match outcome {
                    Outcome::Release => self.release().await,
                    outcome => {
                        let record = self.record(outcome);
                        self.complete(record).await;
                    }
                }
                drop(hold);
            }
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
                () = tokio::time::sleep(lease / 3), if !lost => {}
            }
            // The body goes on while the store answers, and whatever it answers: it has started.
            let renewed = tokio::select! {
                biased;
                result = &mut work => return result,
                renewed = self.claim.renew(lease) => renewed,
            };
            match renewed {
                Ok(()) => {}
                Err(StoreError::Lost) => {
                    lost = true;
                    tracing::error!(key = %self.attempt.key, "the lease was lost while the body runs: it took longer than the lease without a renewal, or the store forgot the claim");
                }
                Err(error) => {
                    tracing::warn!(key = %self.attempt.key, %error, "the lease could not be renewed; trying again")
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

    /// Completes the claim, again and again if need be. It is never released here: the body ran.
    async fn complete(self, record: Record) {
        let Attempt { key, rules, .. } = self.attempt;
        let mut claim = Some(self.claim);
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            let Some(current) = claim.take() else { break };
            claim = current.twin();
            match current.complete(record.clone(), rules.ttl).await {
                Ok(()) => return,
                Err(error @ StoreError::Lost) => {
                    tracing::error!(%key, %error, "the answer was sent but not recorded: the outcome under this key is unknown");
                    return;
                }
                Err(error) => {
                    tracing::error!(%key, %error, source = error_source(&error), "the answer could not be recorded; the claim stays");
                    if claim.is_none() {
                        return;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        tracing::error!(%key, "the answer was sent but not recorded: the outcome under this key is unknown");
    }

    async fn release(self) {
        let Attempt { key, .. } = self.attempt;
        let twin = self.claim.twin();
        let Err(error) = self.claim.release().await else { return };
        let again = match (error, twin) {
            (StoreError::Lost, _) | (_, None) => Err(StoreError::Lost),
            (_, Some(twin)) => twin.release().await,
        };
        if again.is_err() {
            tracing::error!(%key, "a claim could not be released; its key stays in flight until its lease ends");
        }
    }
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

//! One run of the body, from its claim to the end of the claim.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::ending::{End, Ending, STEP, within};
use crate::engine::{Core, Place};
use crate::erased::BoxClaim;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::lease::Lease;
use crate::observation::Running;
use crate::origin::Origin;
use crate::record::Draft;
use crate::rules::{Abandoned, Rules};
use crate::store::StoreError;

/// How long a slow store may hold the answer back. After that the client gets it, and the completion goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// A body that ended: its answer, and what is to be remembered of it.
#[derive(Debug)]
pub struct Ended<T> {
    /// The answer for whoever waits.
    pub response: T,
    /// What to remember.
    pub recording: Recording,
}

/// What is to be remembered, and when that is known.
///
/// ```
/// use idem_runtime::{Draft, Ended, Outcome, Recorded, Recording};
/// use tokio::sync::oneshot;
///
/// /// A stream goes out at once, and is recorded when `whole` says what it came to.
/// fn streamed(whole: oneshot::Receiver<Vec<u8>>) -> Ended<&'static str> {
///     let recorded = async {
///         let outcome = match whole.await {
///             Ok(bytes) => {
///                 let mut draft = Draft::new();
///                 draft.put(&bytes);
///                 Outcome::Answer(draft)
///             }
///             // The stream broke off: the body ran, and there is no answer to replay.
///             Err(_) => Outcome::NotReplayable,
///         };
///         Recorded { outcome, hold: None }
///     };
///     Ended { response: "a stream", recording: Recording::Live(Box::pin(recorded)) }
/// }
/// # let (_sender, receiver) = oneshot::channel();
/// # assert_eq!(streamed(receiver).response, "a stream");
/// ```
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
///
/// ```
/// use idem_runtime::{Draft, Outcome};
///
/// /// An adapter's rule: a failure is not kept, and what is too large neither, but its body does not run again.
/// fn outcome(status: u16, body: &[u8]) -> Outcome {
///     if status == 503 {
///         return Outcome::Release;
///     }
///     if body.len() > 1024 {
///         return Outcome::NotReplayable;
///     }
///     let mut draft = Draft::with_capacity(2 + body.len());
///     draft.put(&status.to_le_bytes());
///     draft.put(body);
///     Outcome::Answer(draft)
/// }
/// assert!(matches!(outcome(201, b"tea"), Outcome::Answer(draft) if draft.len() == 5));
/// ```
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
    pub(crate) key: StorageKey,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) rules: Rules,
    pub(crate) claim: BoxClaim,
    pub(crate) origin: Origin,
    /// Whether the claim was another owner's, whose body may have run.
    pub(crate) took_over: bool,
    /// `None` where the store's claims need no renewal.
    pub(crate) renewal: Option<Renewal>,
    pub(crate) core: Arc<Core>,
    /// One of the places that bound how many bodies run at once.
    pub(crate) place: Place,
}

/// What it takes to keep a claim.
pub(crate) struct Renewal {
    pub(crate) lease: Duration,
    pub(crate) lost: watch::Sender<bool>,
}

impl Execution {
    /// What the body can learn about its claim.
    pub(crate) fn lease(&self) -> Lease {
        self.renewal.as_ref().map_or_else(Lease::default, |renewal| Lease::watching(&renewal.lost))
    }

    /// Runs the body to its end and ends the claim: its answer, which a retry finds recorded. Nobody may be listening any
    /// more.
    ///
    /// `None` where another run has taken the claim over, and a retry gets the answer of that one.
    pub(crate) async fn run<T>(mut self, body: impl Future<Output = Ended<T>>) -> Option<T> {
        let running = Running::protected(&self.origin);
        let Ended { response, recording } = self.keep(pin!(body)).await;
        drop(running);
        match recording {
            Recording::Done(outcome) => {
                let reruns = self.rules.abandoned == Abandoned::Rerun;
                let lost = matches!(self.end(outcome).await, Some(Err(StoreError::Lost)));
                if lost && reruns { None } else { Some(response) }
            }
            Recording::Live(mut recorded) => {
                let core = Arc::clone(&self.core);
                drop(core.spawn(Box::pin(async move {
                    let Recorded { outcome, hold } = self.keep(recorded.as_mut()).await;
                    self.end(outcome).await;
                    drop(hold);
                })));
                Some(response)
            }
        }
    }

    /// Ends the claim, and says how it ended; `None` when that takes longer than [`PATIENCE`], and a task goes on with it: a
    /// slow store is no reason to withhold an answer that is there.
    pub(crate) async fn end(self, outcome: Outcome) -> Option<Result<(), StoreError>> {
        let Self { key, fingerprint, rules, claim, origin, renewal, core, place, .. } = self;
        let end = End::of(outcome, fingerprint, Some(&origin), rules.ttl, &*core.clock);
        let mut ending = Ending::begin(key, claim, end, renewal.map(|renewal| renewal.lease));
        if ending.is_over().await {
            return Some(Ok(()));
        }
        let mut finish = Box::pin(ending.finish());
        let in_time = timeout(PATIENCE, &mut finish).await;
        if in_time.is_err() {
            drop(core.spawn(Box::pin(async move {
                let _place = place;
                // Whatever went wrong was logged.
                let _ = finish.await;
            })));
        }
        in_time.ok()
    }

    /// Awaits `work` and renews the lease meanwhile.
    pub(crate) async fn keep<R>(&mut self, work: Pin<&mut (impl Future<Output = R> + ?Sized)>) -> R {
        match &self.renewal {
            None => work.await,
            // Boxed, since it is larger than everything else of an execution, and most need none.
            Some(renewal) => Box::pin(renewed(work, &mut self.claim, renewal, self.key)).await,
        }
    }
}

/// Runs a body that has no claim to its end. What is to be remembered of it is not.
pub(crate) async fn unprotected<T>(core: Arc<Core>, place: Place, body: impl Future<Output = Ended<T>>) -> T {
    let running = Running::unprotected();
    let Ended { response, recording } = body.await;
    drop(running);
    if let Recording::Live(recorded) = recording {
        // The stream to the client flows through the recording.
        drop(core.spawn(Box::pin(async move {
            let _place = place;
            drop(recorded.await);
        })));
    }
    response
}

/// Awaits `work` and renews the lease of `claim` meanwhile. Work that is ready at once costs no timer.
async fn renewed<R>(
    mut work: Pin<&mut (impl Future<Output = R> + ?Sized)>,
    claim: &mut BoxClaim,
    Renewal { lease, lost }: &Renewal,
    key: StorageKey,
) -> R {
    if let Some(result) = at_once(work.as_mut()).await {
        return result;
    }
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            () = sleep(*lease / 3), if !*lost.borrow() => {}
        }
        // The body goes on while the store answers, and whatever it answers: it has started.
        let renewed = tokio::select! {
            biased;
            result = &mut work => return result,
            // Long enough for an answer, and short enough that one that gets lost does not cost the lease.
            renewed = within(STEP.min(*lease / 3), claim.renew(*lease)) => renewed,
        };
        match renewed {
            Ok(()) => {}
            Err(StoreError::Lost) => {
                lost.send_replace(true);
                tracing::error!(%key, "the lease was lost while the body runs: it took longer than the lease without a renewal, or the store forgot the claim");
            }
            Err(error) => {
                tracing::warn!(%key, %error, cause = error.cause(), "the lease could not be renewed; trying again")
            }
        }
    }
}

/// The result of `work` if it has one now.
pub(crate) async fn at_once<F: Future + Unpin>(mut work: F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

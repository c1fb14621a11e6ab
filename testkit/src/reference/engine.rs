//! Plays a history to the engine. Every claim becomes a handler that runs until the history ends it, so that requests meet
//! handlers that run, have ended, have panicked, and have lost their client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idem_runtime::{
    Abandoned, Attempt, Executed, Idempotency, ManualClock, Outcome, RecordBuilder, Recording, RefusalReason, Rules,
    RunResult, Store,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::drive::{fingerprint, storage_key};
use super::{LEASE, Model, Step, StoreReply};

/// What a client gets. Executions are numbered as the claims are.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Ran(usize),
    Recorded(usize),
    Mismatch,
    InFlight,
    Unknown,
    NotReplayable,
    Full,
    Other(String),
}

type Client = JoinHandle<Result<RunResult<usize>, RefusalReason>>;

struct Execution {
    claim: usize,
    key: u8,
    /// Whether it takes abandoned claims over, and so may lose its own to another run.
    new_owner: bool,
    /// `None` if the client has hung up.
    client: Option<Client>,
    end: oneshot::Sender<Outcome>,
}

struct EngineDriver<S> {
    engine: Idempotency,
    store: S,
    clock: ManualClock,
    model: Model,
    running: Vec<Execution>,
    handlers: Arc<AtomicUsize>,
}

/// Plays `steps` to an engine over a new store, whose clones share their contents. The error names the first step at
/// which a client got something else than the reference allows, or a handler ran too often.
///
/// A claim is named by its place among those that run. Renewing is left to the engine, and the TTL to the key.
///
/// # Errors
/// What the client got, and what it should have got.
pub async fn play<S: Store + Clone>(store: S, model: Model, steps: &[Step]) -> Result<(), String> {
    let clock = ManualClock::new();
    let engine = Idempotency::builder(store.clone()).clock(clock.clone()).lease(LEASE).build();
    let mut driver = EngineDriver { engine, store, clock, model, running: Vec::new(), handlers: Arc::default() };
    for (index, step) in steps.iter().enumerate() {
        driver.apply(step).await.map_err(|error| format!("step {index}, {step:?}: {error}"))?;
        let (handlers, claims) = (driver.handlers.load(Ordering::SeqCst), driver.model.granted());
        if handlers != claims {
            return Err(format!("step {index}, {step:?}: {handlers} handlers have run, the reference grants {claims}"));
        }
    }
    Ok(())
}

/// The responses of these executions are not recorded.
fn leaves_tombstone(claim: usize) -> bool {
    claim % 5 == 4
}

/// The clients of these executions hang up.
fn hangs_up(claim: usize) -> bool {
    claim % 3 == 2
}

fn ttl(key: u8) -> Duration {
    LEASE * [1, 2, 3, 50][usize::from(key % 4)]
}

impl<S: Store> EngineDriver<S> {
    async fn apply(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Begin { key, fingerprint, new_owner } => return self.request(key, fingerprint, new_owner).await,
            Step::Complete { claim, .. } | Step::Release { claim } | Step::Drop { claim } => {
                return if self.running.is_empty() { Ok(()) } else { self.end(step, claim % self.running.len()).await };
            }
            Step::Renew { .. } => {}
            Step::Forget { key } => {
                let forgot = self.store.forget(&storage_key(key)).await.map_err(|error| error.to_string())?;
                let expected = self.model.apply(step);
                if !expected.allows(StoreReply::Forgot(forgot)) {
                    return Err(format!("the store forgot: {forgot}, the reference: {expected:?}"));
                }
            }
            Step::Advance(by) => {
                self.clock.advance(by);
                self.model.apply(step);
            }
        }
        Ok(())
    }

    async fn request(&mut self, key: u8, fingerprint: u8, new_owner: bool) -> Result<(), String> {
        let claim = self.model.granted();
        let expected =
            match self.model.apply(&Step::Begin { key, fingerprint, new_owner }) {
                StoreReply::Claimed | StoreReply::TookOver => Reply::Ran(claim),
                StoreReply::Abandoned => Reply::Unknown,
                StoreReply::Full => Reply::Full,
                StoreReply::InFlight { fingerprint: other } if other == fingerprint => Reply::InFlight,
                StoreReply::Completed { fingerprint: other, claim } if other == fingerprint => {
                    if leaves_tombstone(claim) { Reply::NotReplayable } else { Reply::Recorded(claim) }
                }
                _ => Reply::Mismatch,
            };
        let abandoned = if new_owner { Abandoned::Rerun } else { Abandoned::Refuse };
        let rules = Rules { ttl: ttl(key), abandoned, ..Rules::DEFAULT };
        let attempt = Attempt::new(storage_key(key), self::fingerprint(fingerprint), rules);
        let (starts, started) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (engine, handlers) = (self.engine.clone(), Arc::clone(&self.handlers));
        let handler = move |_| {
            handlers.fetch_add(1, Ordering::SeqCst);
            let _ = starts.send(());
            async move {
                let Ok(outcome) = ended.await else { std::panic::resume_unwind(Box::new("the handler panics")) };
                Executed { response: claim, recording: Recording::Done(outcome) }
            }
        };
        let client = tokio::spawn(async move { engine.run(attempt, handler).await });
        if started.await.is_err() {
            return compare(&reply_of(client).await, &expected);
        }
        let client = if hangs_up(claim) {
            client.abort();
            None
        } else {
            Some(client)
        };
        self.running.push(Execution { claim, key, new_owner, client, end });
        compare(&Reply::Ran(claim), &expected)
    }

    async fn end(&mut self, step: &Step, index: usize) -> Result<(), String> {
        let Execution { claim, key, new_owner, client, end } = self.running.swap_remove(index);
        let mut expected = Reply::Ran(claim);
        match step {
            Step::Release { .. } => {
                if self.model.apply(&Step::Release { claim }) == StoreReply::Lost && new_owner {
                    expected = Reply::Unknown;
                }
                let _ = end.send(Outcome::Release);
            }
            Step::Drop { .. } => {
                self.model.apply(&Step::Drop { claim });
                expected = Reply::Unknown;
                drop(end);
            }
            _ => {
                // A lost claim cannot be completed. If another run may have it, the response of that run counts.
                if self.model.apply(&Step::Complete { claim, ttl: ttl(key) }) == StoreReply::Lost && new_owner {
                    expected = Reply::Unknown;
                }
                let mut builder = RecordBuilder::new();
                builder.put(&(claim as u64).to_le_bytes());
                let tombstone = leaves_tombstone(claim);
                let _ = end.send(if tombstone { Outcome::NotReplayable } else { Outcome::Record(builder) });
            }
        }
        if let Some(client) = client {
            compare(&reply_of(client).await, &expected)?;
        }
        let settled = async {
            while self.engine.executions() != self.running.len() {
                tokio::task::yield_now().await;
            }
        };
        // A store in another process needs more than a few turns of this thread.
        if tokio::time::timeout(Duration::from_secs(10), settled).await.is_ok() {
            return Ok(());
        }
        Err(format!("{} executions run, but {} should", self.engine.executions(), self.running.len()))
    }
}

fn compare(reply: &Reply, expected: &Reply) -> Result<(), String> {
    if reply == expected { Ok(()) } else { Err(format!("the client got {reply:?}, the reference says {expected:?}")) }
}

async fn reply_of(client: Client) -> Reply {
    match client.await {
        Ok(Ok(RunResult::Executed(execution))) => Reply::Ran(execution),
        Ok(Ok(RunResult::Replayed(replay))) => {
            match replay.content()[..].try_into().map(u64::from_le_bytes).map(usize::try_from) {
                Ok(Ok(execution)) => Reply::Recorded(execution),
                _ => Reply::Other(format!("{replay:?}")),
            }
        }
        Ok(Err(RefusalReason::Mismatch)) => Reply::Mismatch,
        Ok(Err(RefusalReason::InFlight)) => Reply::InFlight,
        Ok(Err(RefusalReason::OutcomeUnknown)) => Reply::Unknown,
        Ok(Err(RefusalReason::NotReplayable)) => Reply::NotReplayable,
        Ok(Err(RefusalReason::StoreFull)) => Reply::Full,
        Ok(Err(refused)) => Reply::Other(refused.to_string()),
        Err(error) => Reply::Other(error.to_string()),
    }
}

//! A run that is dropped at any poll, over a store each step of which is long under way, as a remote one's is: the key is
//! absent, running with an owner, or recorded, and in the end nothing is in flight.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::poll;
use idem_proofs::faulty::ReleaseOnDrop;
use idem_runtime::{
    Attempt, Begin, BeginOptions, Claim, Executed, Fingerprint, Idempotency, MemoryStore, Outcome, Record, Recording,
    RefusalReason, Rules, RunResult, StorageKey, Store, StoreError, StoredEntry,
};
use idem_testkit::intercept::{Hooks, Intercept};
use tokio::task::yield_now;
use tokio::time::timeout;

const OPTIONS: BeginOptions = BeginOptions::new(Duration::from_secs(30), Duration::from_secs(60));

/// Every step of the store is pending for this many polls before it happens, and for as many after.
struct Slow {
    polls: usize,
}

async fn slowly<T>(polls: usize, step: impl Future<Output = T>) -> T {
    for _ in 0..polls {
        yield_now().await;
    }
    let done = step.await;
    for _ in 0..polls {
        yield_now().await;
    }
    done
}

impl<S: Store> Hooks<S> for Slow {
    async fn begin(
        &self,
        store: &S,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<S::Claim>, StoreError> {
        slowly(self.polls, store.begin(key, fingerprint, options)).await
    }

    async fn ended(&self, store: &S, key: &StorageKey) {
        slowly(self.polls, store.ended(key)).await;
    }

    async fn forget(&self, store: &S, key: &StorageKey) -> Result<bool, StoreError> {
        slowly(self.polls, store.forget(key)).await
    }

    async fn inspect(&self, store: &S, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        slowly(self.polls, store.inspect(key)).await
    }

    async fn drained(&self, store: &S) {
        slowly(self.polls, store.drained()).await;
    }

    async fn renew(&self, claim: &mut S::Claim, lease: Duration) -> Result<(), StoreError> {
        slowly(self.polls, claim.renew(lease)).await
    }

    async fn complete(&self, claim: S::Claim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        slowly(self.polls, claim.complete(record, ttl)).await
    }

    async fn release(&self, claim: S::Claim) -> Result<(), StoreError> {
        slowly(self.polls, claim.release()).await
    }
}

fn attempt() -> Attempt {
    let (key, fingerprint) = (StorageKey::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]));
    Attempt::new(key, fingerprint, Rules::default())
}

/// How often the body began and ended.
#[derive(Clone, Debug, Default)]
struct Bodies(Arc<(AtomicUsize, AtomicUsize)>);

impl Bodies {
    fn seen(&self) -> (usize, usize) {
        (self.0.0.load(Ordering::SeqCst), self.0.1.load(Ordering::SeqCst))
    }

    async fn run(self) -> Executed<()> {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        for _ in 0..3 {
            yield_now().await;
        }
        self.0.1.fetch_add(1, Ordering::SeqCst);
        Executed { response: (), recording: Recording::Done(Outcome::NotReplayable) }
    }
}

/// The state of the key, as a store that replies at once sees it. A claim that this takes is released.
async fn standing(store: &impl Store) -> &'static str {
    let Attempt { key, fingerprint, .. } = attempt();
    match store.begin(&key, &fingerprint, &OPTIONS).await.unwrap() {
        Begin::Claimed(claim) => {
            claim.release().await.unwrap();
            "absent"
        }
        Begin::InFlight(_) => "running",
        Begin::Completed(_) => "recorded",
        Begin::Abandoned(_) => "abandoned",
    }
}

/// Drops a run after each number of polls until it gets its response; what was seen of the key at those times.
///
/// # Errors
/// What was wrong, and after how many polls.
async fn at_every_poll<S: Store + Clone>(
    polls: usize,
    make: impl Fn() -> (S, MemoryStore),
) -> Result<Vec<&'static str>, String> {
    let seen = Mutex::new(Vec::new());
    for dropped_after in 0.. {
        let (store, inner) = make();
        let idempotency = Idempotency::new(Intercept::new(store.clone(), Slow { polls }));
        let bodies = Bodies::default();
        let mut has_response = false;
        {
            let body = bodies.clone();
            let mut run = Box::pin(idempotency.run(attempt(), |_| body.run()));
            for _ in 0..dropped_after {
                if poll!(&mut run).is_ready() {
                    has_response = true;
                    break;
                }
                // The engine's own tasks get on between two polls.
                yield_now().await;
            }
        }
        let here = standing(&store).await;
        seen.lock().unwrap().push(here);
        let what = |what: String| Err(format!("dropped after {dropped_after} polls: {what}"));
        if here == "abandoned" {
            return what("the key has no owner".to_owned());
        }
        if timeout(Duration::from_secs(60), idempotency.drain()).await.is_err() {
            return what("something never ends".to_owned());
        }
        let (began, ended) = bodies.seen();
        let usage = inner.usage();
        let (running, in_flight, records) = (idempotency.executions(), usage.in_flight, usage.completed);
        if (running, in_flight, records, ended) != (0, 0, began, began) || began > 1 {
            return what(format!(
                "{running} executions, {in_flight} claims, {records} records, {began} bodies, {ended} ended"
            ));
        }
        // A retry gets a response, by a new execution if there was none.
        let body = bodies.clone();
        let retry = idempotency.run(attempt(), |_| body.run()).await;
        let fits = if began == 0 {
            matches!(retry, Ok(RunResult::Executed(())))
        } else {
            matches!(retry, Err(RefusalReason::NotReplayable))
        };
        if !fits || bodies.seen() != (1, 1) {
            return what(format!("the retry got {retry:?} after {began} bodies"));
        }
        if has_response {
            return Ok(seen.into_inner().unwrap());
        }
    }
    unreachable!("a run gets its response at last")
}

fn memory() -> (MemoryStore, MemoryStore) {
    let store = MemoryStore::new();
    (store.clone(), store)
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_dropped_at_any_poll_leaves_the_key_absent_running_or_recorded() {
    for polls in [0, 1, 2, 3, 7] {
        let seen = at_every_poll(polls, memory).await.unwrap();
        println!("{polls}: {seen:?}");
        assert_eq!((seen.first(), seen.last()), (Some(&"absent"), Some(&"recorded")));
        assert!(seen.contains(&"running"), "{seen:?}");
        assert!(seen.len() > 2 * polls, "there were polls to be dropped at: {seen:?}");
    }
}

/// The control: a run inside the future of the request, which is cut off together with its claim.
#[tokio::test(start_paused = true)]
async fn a_run_inside_the_future_that_is_dropped_leaves_the_key_without_an_owner() {
    let mut left = Vec::new();
    for dropped_after in 0..20 {
        let store = MemoryStore::new();
        let slow = Intercept::new(store.clone(), Slow { polls: 2 });
        let Attempt { key, fingerprint, .. } = attempt();
        let mut run = Box::pin(async {
            let begun = slow.begin(&key, &fingerprint, &OPTIONS).await;
            let Ok(Begin::Claimed(claim)) = begun else { panic!("the key is free") };
            Bodies::default().run().await;
            claim.release().await.unwrap();
        });
        for _ in 0..dropped_after {
            if poll!(&mut run).is_ready() {
                break;
            }
        }
        drop(run);
        left.push(standing(&store).await);
    }
    assert!(left.contains(&"abandoned"), "{left:?}");
}

/// A store that gives a claim back when it is dropped hides nothing here, since the engine drops none.
#[tokio::test(start_paused = true)]
async fn the_engine_drops_no_claim_whatever_is_dropped() {
    let make = || {
        let store = MemoryStore::new();
        (Intercept::new(store.clone(), ReleaseOnDrop), store)
    };
    for polls in [1, 3] {
        assert_eq!(at_every_poll(polls, make).await.unwrap().last(), Some(&"recorded"));
    }
}

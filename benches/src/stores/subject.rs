//! What is measured: a store, or the bare commands that do as much as it must.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use idem_runtime::{Begin, BeginOptions, Claim, Fingerprint, Record, StorageKey, Store};
use serde::Serialize;

use crate::Failure;
use crate::scale::record_bytes;

/// How long a claim lives without renewal.
pub const LEASE: Duration = Duration::from_secs(30);
/// So long that nothing expires meanwhile.
pub const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// What is done to each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Work {
    /// A new key is claimed, and completed with a record.
    Execute,
    /// The record of a key is read.
    Replay,
}

impl Work {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Execute => "first execution",
            Self::Replay => "replay",
        }
    }
}

/// A future that can be kept in a list with others.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// How one subject does the work for one key.
pub trait Steps: Send {
    /// Claims the key, which must be new, and completes it.
    fn execute(&mut self, key: &StorageKey) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Reads the record of the key, which must be there.
    fn replay(&mut self, key: &StorageKey) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Any subject.
pub trait Subject: Send {
    /// Does the work for these keys, one after the other: the time that it took.
    fn batch<'a>(&'a mut self, work: Work, keys: &'a [StorageKey]) -> Boxed<'a, Duration>;
}

impl<S: Steps> Subject for S {
    fn batch<'a>(&'a mut self, work: Work, keys: &'a [StorageKey]) -> Boxed<'a, Duration> {
        Box::pin(async move {
            let started = Instant::now();
            for key in keys {
                match work {
                    Work::Execute => self.execute(key).await?,
                    Work::Replay => self.replay(key).await?,
                }
            }
            Ok(started.elapsed())
        })
    }
}

/// A store that many tasks use at once.
pub trait Load: Send + Sync {
    /// Lets this many tasks execute new keys for so long: first executions per second. The keys are numbered by `next`.
    fn load(&self, tasks: usize, time: Duration, next: Arc<AtomicU64>) -> Boxed<'_, f64>;
}

/// A store, as a subject.
#[derive(Debug)]
pub struct StoreSubject<S>(Arc<S>);

impl<S: Store> StoreSubject<S> {
    /// This store.
    pub fn new(store: S) -> Self {
        Self(Arc::new(store))
    }
}

impl<S: Store> Steps for StoreSubject<S> {
    async fn execute(&mut self, key: &StorageKey) -> Result<(), Failure> {
        execute(&*self.0, key).await
    }

    async fn replay(&mut self, key: &StorageKey) -> Result<(), Failure> {
        match self.0.begin(key, &fingerprint(), &BeginOptions::new(LEASE, TTL)).await? {
            Begin::Completed(record) if *record.bytes() == record_bytes() => Ok(()),
            other => Err(format!("`begin` of a recorded key returned {}", name_of(&other)).into()),
        }
    }
}

impl<S: Store> Load for StoreSubject<S> {
    fn load(&self, tasks: usize, time: Duration, next: Arc<AtomicU64>) -> Boxed<'_, f64> {
        let store = Arc::clone(&self.0);
        Box::pin(async move {
            let started = Instant::now();
            let tasks: Vec<_> = (0..tasks)
                .map(|_| {
                    let (store, next) = (Arc::clone(&store), Arc::clone(&next));
                    tokio::spawn(async move {
                        let mut executions = 0_u32;
                        while executions == 0 || started.elapsed() < time {
                            execute(&*store, &key(next.fetch_add(1, Ordering::Relaxed))).await?;
                            executions += 1;
                            // A store that never waits would not let the other tasks run.
                            tokio::task::yield_now().await;
                        }
                        Ok::<_, Failure>(executions)
                    })
                })
                .collect();
            let mut executions = 0.0;
            for task in tasks {
                executions += f64::from(task.await??);
            }
            Ok(executions / started.elapsed().as_secs_f64())
        })
    }
}

async fn execute<S: Store>(store: &S, key: &StorageKey) -> Result<(), Failure> {
    match store.begin(key, &fingerprint(), &BeginOptions::new(LEASE, TTL)).await? {
        Begin::Claimed(claim) => Ok(claim.complete(record(), TTL).await?),
        other => Err(format!("`begin` of a new key returned {}", name_of(&other)).into()),
    }
}

/// The name of a result that is not the expected one.
const fn name_of<C>(begin: &Begin<C>) -> &'static str {
    match begin {
        Begin::Claimed(_) => "a claim",
        Begin::Abandoned(_) => "an abandoned claim",
        Begin::InFlight(_) => "a claim in flight",
        Begin::Completed(_) => "a record",
    }
}

/// The storage key with this number. Its bytes are spread as those of a hash are, so that an index is not filled in order.
pub fn key(number: u64) -> StorageKey {
    let mut bytes = [0; 32];
    for (lane, part) in (0_u64..).zip(bytes.chunks_exact_mut(8)) {
        // The mixer of SplitMix64, which maps different numbers to different ones.
        let mut mixed = (number * 4 + lane).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    StorageKey::from_bytes(bytes)
}

/// The fingerprint of all requests.
pub fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([7; 32])
}

/// What a response of 100 bytes leaves behind.
fn record() -> Record {
    Record::new(fingerprint(), record_bytes())
}

/// The same as the stores write it, so that the bare commands write as many bytes.
pub fn checksummed() -> Bytes {
    record().to_checksummed_bytes(&key(0))
}

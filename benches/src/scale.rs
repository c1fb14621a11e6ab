//! What `begin` and `complete` of a `MemoryStore` cost with few keys in it and with many, on one thread and on two, on one
//! key and on many; and beside them, what a map with as many keys costs that does nothing else, since it grows as well.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use idem_runtime::{Begin, BeginOptions, Claim, Fingerprint, Key, MemoryStore, Record, Scope, StorageKey, Store};
use serde::Serialize;

use crate::Failure;
use crate::row;
use crate::sample::Series;

/// How many keys the store holds, unless fewer are asked for.
pub const LIVE_KEYS: [u64; 4] = [1_000, 100_000, 1_000_000, 10_000_000];
/// How long a claim may go without a renewal, which a `MemoryStore` ignores.
const LEASE: Duration = Duration::from_secs(60);
/// So long that nothing expires meanwhile.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// What is done to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Work {
    /// `begin` and `complete` of new keys.
    Execute,
    /// `begin` of keys whose records are there.
    Replay,
    /// `begin` of one such key, over and over.
    ReplayHot,
    /// An insert of new keys into a plain map.
    PlainInsert,
    /// A read of keys that are in a plain map.
    PlainRead,
}

impl Work {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Execute => "begin and complete, new keys",
            Self::Replay => "begin, recorded keys",
            Self::ReplayHot => "begin, one recorded key",
            Self::PlainInsert => "plain map, insert of new keys",
            Self::PlainRead => "plain map, read of its keys",
        }
    }
}

/// One cell of the table.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleMeasurement {
    /// What was done.
    pub work: &'static str,
    /// By how many threads at once.
    pub threads: u64,
    /// How many keys were in the store.
    pub live_keys: u64,
    /// Nanoseconds per key, one value per round; with two threads, of each thread.
    pub nanos: Series,
}

/// Measures all work at all sizes up to `most` keys, in rounds in which they take turns.
///
/// # Errors
/// A `begin` that returned something else than the work expects.
pub fn measure(most: u64, rounds: usize, batch: u64) -> Result<Vec<ScaleMeasurement>, Failure> {
    let mut stores = Vec::new();
    for live_keys in LIVE_KEYS.into_iter().filter(|keys| *keys <= most) {
        eprintln!("filling a store with {live_keys} keys");
        stores.push(FilledStore::new(live_keys)?);
    }
    // Reading comes first: after records were forgotten, the maps may be larger than the keys in them need.
    let mut cells = phase(&mut stores, &[Work::Replay, Work::PlainRead, Work::ReplayHot], rounds, batch)?;
    cells.extend(phase(&mut stores, &[Work::Execute, Work::PlainInsert], rounds, batch)?);
    Ok(cells)
}

fn phase(
    stores: &mut [FilledStore],
    works: &[Work],
    rounds: usize,
    batch: u64,
) -> Result<Vec<ScaleMeasurement>, Failure> {
    let mut cells = Vec::new();
    for (store, filled) in stores.iter().enumerate() {
        for work in works {
            for threads in [1, 2] {
                let nanos = Series::default();
                let scaled = ScaleMeasurement { work: work.name(), threads, live_keys: filled.live_keys, nanos };
                cells.push((store, *work, scaled));
            }
        }
    }
    let count = cells.len();
    for round in 0..=rounds {
        for turn in 0..count {
            let (store, work, scaled) = &mut cells[(round + turn) % count];
            let took = stores[*store].run(*work, scaled.threads, batch)?;
            // The first round warms up.
            if round > 0 {
                scaled.nanos.0.push(took.as_secs_f64() * 1e9 / batch as f64);
            }
        }
    }
    Ok(cells.into_iter().map(|(_, _, scaled)| scaled).collect())
}

struct FilledStore {
    store: MemoryStore,
    plain: Plain,
    live_keys: u64,
    next: u64,
}

impl FilledStore {
    fn new(live_keys: u64) -> Result<Self, Failure> {
        let store = MemoryStore::builder().max_entries(20_000_000).max_bytes(64 << 30).build();
        let plain = Plain::new();
        for number in 0..live_keys {
            let key = storage_key(number)?;
            execute(&store, &key)?;
            plain.insert(&key);
        }
        Ok(Self { store, plain, live_keys, next: live_keys })
    }

    /// Does `work` for `batch` keys on each of `threads` threads: the time of the slowest.
    fn run(&mut self, work: Work, threads: u64, batch: u64) -> Result<Duration, Failure> {
        let mut shares = Vec::new();
        for _ in 0..threads {
            let keys: Result<Vec<_>, Failure> = match work {
                Work::Execute | Work::PlainInsert => (self.next..self.next + batch).map(storage_key).collect(),
                // A stride that visits the keys in no order, and each thread others.
                Work::Replay | Work::PlainRead => (self.next..self.next + batch)
                    .map(|number| storage_key(number.wrapping_mul(2_654_435_761) % self.live_keys))
                    .collect(),
                Work::ReplayHot => (0..batch).map(|_| storage_key(0)).collect(),
            };
            self.next += batch;
            shares.push(keys?);
        }
        let together = Barrier::new(shares.len());
        let filled = &*self;
        let slowest = thread::scope(|scope| {
            let running: Vec<_> =
                shares.iter().map(|keys| scope.spawn(|| timed(filled, keys, work, &together))).collect();
            let mut slowest = Duration::ZERO;
            for thread in running {
                slowest = slowest.max(thread.join().map_err(|_| "a thread panicked")??);
            }
            Ok::<_, Failure>(slowest)
        })?;
        // So that both stay at their size.
        for key in shares.iter().flatten() {
            let gone = match work {
                Work::Execute => ready(self.store.forget(key))??,
                Work::PlainInsert => self.plain.remove(key),
                Work::Replay | Work::ReplayHot | Work::PlainRead => continue,
            };
            if !gone {
                return Err("a new key was not there afterwards".into());
            }
        }
        Ok(slowest)
    }
}

/// A map that is cut into as many parts as a `MemoryStore` is, and keeps no promise but to find what was put into it.
struct Plain {
    parts: Vec<Mutex<HashMap<StorageKey, Bytes>>>,
}

impl Plain {
    fn new() -> Self {
        Self { parts: (0..256).map(|_| Mutex::default()).collect() }
    }

    fn part<R>(&self, key: &StorageKey, work: impl FnOnce(&mut HashMap<StorageKey, Bytes>) -> R) -> R {
        let part = &self.parts[usize::from(key.as_bytes()[31])];
        work(&mut part.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn insert(&self, key: &StorageKey) {
        let record = record_bytes();
        self.part(key, |part| part.insert(*key, record));
    }

    fn read(&self, key: &StorageKey) -> Option<Bytes> {
        self.part(key, |part| part.get(key).cloned())
    }

    fn remove(&self, key: &StorageKey) -> bool {
        self.part(key, |part| part.remove(key)).is_some()
    }
}

fn timed(filled: &FilledStore, keys: &[StorageKey], work: Work, together: &Barrier) -> Result<Duration, Failure> {
    let FilledStore { store, plain, .. } = filled;
    together.wait();
    let started = Instant::now();
    for key in keys {
        match work {
            Work::Execute => execute(store, key)?,
            Work::Replay | Work::ReplayHot => {
                match ready(store.begin(key, &fingerprint(), &BeginOptions::new(LEASE, TTL)))?? {
                    Begin::Completed(record) => drop(black_box(record)),
                    other => return Err(format!("`begin` of a recorded key returned {other:?}").into()),
                }
            }
            Work::PlainInsert => plain.insert(key),
            Work::PlainRead => {
                black_box(plain.read(key)).ok_or("a key of the plain map was not there")?;
            }
        }
    }
    Ok(started.elapsed())
}

/// Claims `key` and completes it with a record as a response of 100 bytes leaves it.
///
/// # Errors
/// If the key was not new.
pub fn execute(store: &MemoryStore, key: &StorageKey) -> Result<(), Failure> {
    let claim = claim(store, key)?;
    Ok(ready(claim.complete(Record::new(fingerprint(), record_bytes()), TTL))??)
}

/// Claims `key`.
///
/// # Errors
/// If the key was not new.
pub fn claim(store: &MemoryStore, key: &StorageKey) -> Result<<MemoryStore as Store>::Claim, Failure> {
    match ready(store.begin(key, &fingerprint(), &BeginOptions::new(LEASE, TTL)))?? {
        Begin::Claimed(claim) => Ok(claim),
        other => Err(format!("`begin` of a new key returned {other:?}").into()),
    }
}

/// The storage key with this number.
///
/// # Errors
/// None: the keys are well-formed.
pub fn storage_key(number: u64) -> Result<StorageKey, Failure> {
    Ok(StorageKey::new("", &Scope::GLOBAL, &Key::parse(row::key(number).as_bytes())?))
}

/// What a response of 100 bytes with its content type is as a record, in its own allocation.
pub fn record_bytes() -> Bytes {
    Bytes::copy_from_slice(&[b'r'; RECORD])
}

/// How long that is: the head of a record, status, one header, and the body.
const RECORD: usize = 10 + 40 + 100;

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([7; 32])
}

/// A `MemoryStore` never waits.
fn ready<F: Future>(future: F) -> Result<F::Output, Failure> {
    future.now_or_never().ok_or_else(|| "the store had to wait".into())
}

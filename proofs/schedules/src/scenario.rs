//! What threads do to a store, and what must hold whatever the order.

use std::sync::{Arc, Mutex as StdMutex, MutexGuard as StdGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use idem_runtime::{Begin, BeginOptions, Claim, Clock, Fingerprint, ManualClock, Record, StorageKey, StoreError};
use shuttle::future::block_on;

pub use crate::subject::Subject;

const LEASE: Duration = Duration::from_secs(30);
/// How long records live, in scenarios with a clock that moves and in those without.
pub const TTL: Duration = Duration::from_secs(60);
const OPTIONS: BeginOptions = BeginOptions::new(LEASE, TTL);

/// How a thread's claim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Complete,
    Release,
    Drop,
    /// `complete` is called, and its future dropped before it was polled.
    CancelComplete,
    /// The same with `release`.
    CancelRelease,
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asks for the key, ends the claim as told if it gets one, and does not wait.
    Try(u8, End),
    /// The same, but waits while the key is in flight.
    Wait(u8, End),
    /// Takes over what is abandoned, and completes it.
    TakeOver(u8),
    /// Begins and waits, and is dropped at its first await.
    CancelWait(u8),
    /// A `begin` that is dropped before it was polled.
    CancelBegin(u8),
    Forget(u8),
    /// Lets every record that is there expire.
    Expire,
    Janitor,
}

/// What is known of a key from outside. It is written before a step that takes something away, and after one that puts
/// something there, so it never claims more than the store must hold.
#[derive(Default)]
struct KeyExpectation {
    /// A thread has the claim.
    held: bool,
    /// Its owner is completing it: until the record is there the claim is, and the key is never free.
    completing: bool,
    /// The claim is there, and has no owner.
    abandoned: bool,
    /// The record that is there, by the number of the claim that left it.
    record: Option<u64>,
    /// How many threads are forgetting it: whatever is put there now may go at once.
    forgetting: usize,
    /// Grows with every change of this.
    version: u64,
}

#[derive(Default)]
struct Expectations {
    keys: [KeyExpectation; 4],
    claims: u64,
}

/// A store, its clock, and what is known of it. Clones share them.
pub struct World<S> {
    store: S,
    clock: ManualClock,
    max_entries: usize,
    expectations: Arc<StdMutex<Expectations>>,
}

impl<S: Clone> Clone for World<S> {
    fn clone(&self) -> Self {
        let Self { store, clock, max_entries, expectations } = self;
        Self {
            store: store.clone(),
            clock: clock.clone(),
            max_entries: *max_entries,
            expectations: Arc::clone(expectations),
        }
    }
}

fn storage_key(key: u8) -> StorageKey {
    let mut bytes = [0; 32];
    (bytes[0], bytes[31]) = (key, key);
    StorageKey::from_bytes(bytes)
}

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([7; 32])
}

/// The bytes of the record of a claim.
pub const RECORD_BYTES: usize = 28;

fn record(claim: u64) -> Record {
    Record::new(
        fingerprint(),
        [&[1, 1][..], &u64::MAX.to_le_bytes(), &0_u16.to_le_bytes(), &8_u64.to_le_bytes(), &claim.to_le_bytes()]
            .concat()
            .into(),
    )
}

/// The claim that left a record; `None` for a tombstone.
fn left_by(record: &Record) -> Option<u64> {
    let claim = record.bytes().get(20..)?;
    claim.try_into().map(u64::from_le_bytes).ok()
}

impl<S: Subject> World<S> {
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        let clock = ManualClock::new();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let store = S::limited(max_entries, max_bytes);
        store.attach(&shared);
        Self { store, clock, max_entries, expectations: Arc::default() }
    }

    fn expectations(&self) -> StdGuard<'_, Expectations> {
        self.expectations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: u8, change: impl FnOnce(&mut KeyExpectation)) -> u64 {
        let known = &mut self.expectations().keys[usize::from(key)];
        known.version += 1;
        change(known);
        known.version
    }

    /// Writes down what a step has put there, unless something else has happened to the key meanwhile.
    fn change_if(&self, key: u8, version: u64, change: impl FnOnce(&mut KeyExpectation)) {
        let unchanged = {
            let known = &self.expectations().keys[usize::from(key)];
            known.version == version && known.forgetting == 0
        };
        if unchanged {
            self.change(key, change);
        }
    }

    /// Does what a thread does.
    pub fn play(&self, steps: &[Step]) {
        steps.iter().for_each(|&step| self.step(step));
    }

    fn step(&self, step: Step) {
        match step {
            Step::Try(key, end) => drop(self.attempt(key, end, false)),
            Step::TakeOver(key) => drop(self.attempt(key, End::Complete, true)),
            Step::Wait(key, end) => {
                let mut waits = 0;
                while self.attempt(key, end, false).is_some() {
                    block_on(self.store.ended(&storage_key(key)));
                    waits += 1;
                    assert!(waits < 50, "a waiter is woken again and again, and the claim does not end");
                }
            }
            Step::CancelWait(key) => {
                let (key, mut cx) = (storage_key(key), Context::from_waker(Waker::noop()));
                let _: Poll<()> = std::pin::pin!(self.store.ended(&key)).poll(&mut cx);
            }
            Step::CancelBegin(key) => drop(self.store.begin(&storage_key(key), &fingerprint(), &OPTIONS)),
            Step::Forget(key) => {
                self.change(key, |known| {
                    known.forgetting += 1;
                    known.held &= !known.completing;
                    (known.record, known.abandoned) = (None, false);
                });
                block_on(self.store.forget(&storage_key(key))).expect("memory is there");
                self.change(key, |known| known.forgetting -= 1);
            }
            Step::Expire => {
                for key in 0..4 {
                    self.change(key, |known| {
                        known.held &= !known.completing;
                        known.record = None;
                    });
                }
                // No step lies between the two: what is known is never more than what the clock leaves.
                self.clock.advance(TTL);
            }
            Step::Janitor => self.store.janitor(),
        }
    }

    /// One `begin` and the end of its claim. `Some` if the key is in flight.
    fn attempt(&self, key: u8, end: End, take_over: bool) -> Option<()> {
        let (version, must_replay, no_record, not_free) = {
            let known = &self.expectations().keys[usize::from(key)];
            (
                known.version,
                known.record,
                if known.held { !known.completing } else { known.abandoned },
                known.held || known.abandoned,
            )
        };
        let begun = block_on(self.store.begin(&storage_key(key), &fingerprint(), &OPTIONS));
        let unchanged = self.expectations().keys[usize::from(key)].version == version;
        match begun {
            Ok(Begin::Completed(kept)) => {
                if let (true, Some(claim), Some(kept)) = (unchanged, must_replay, left_by(&kept)) {
                    assert_eq!(kept, claim, "the record of another claim");
                }
                assert!(!(unchanged && no_record), "a record beside a claim");
            }
            Ok(Begin::Claimed(claim)) => {
                assert!(!unchanged || must_replay.is_none(), "a live record was lost");
                assert!(!unchanged || !not_free, "a key was claimed twice");
                self.end(key, claim, end);
            }
            Ok(Begin::Abandoned(claim)) if !take_over => {
                // To look at it is to hold it for a moment.
                let version = self.change(key, |known| known.abandoned = false);
                drop(claim);
                self.change_if(key, version, |known| known.abandoned = true);
            }
            Ok(Begin::Abandoned(mut claim)) => {
                assert!(!unchanged || must_replay.is_none(), "an abandoned claim beside a record");
                block_on(claim.renew(LEASE)).expect("memory is there");
                self.change(key, |known| known.abandoned = false);
                self.end(key, claim, End::Complete);
            }
            Ok(Begin::InFlight(_)) => {
                assert!(!unchanged || must_replay.is_none(), "a claim beside a record");
                return Some(());
            }
            Err(StoreError::Full) => {
                assert!(!unchanged || must_replay.is_none(), "a full store serves existing keys");
                assert!(!unchanged || !not_free, "a full store serves existing keys");
            }
            Err(error) => panic!("{error}"),
        }
        None
    }

    fn end(&self, key: u8, claim: S::Claim, end: End) {
        let number = {
            let mut expectations = self.expectations();
            expectations.claims += 1;
            let number = expectations.claims;
            let known = &mut expectations.keys[usize::from(key)];
            assert!(!known.held && !known.abandoned, "two claims on one key");
            assert_eq!(known.record, None, "a claim beside a record");
            known.version += 1;
            (known.held, known.completing) = (true, false);
            let there =
                expectations.keys.iter().filter(|known| known.held || known.abandoned || known.record.is_some());
            assert!(there.count() <= self.max_entries, "more keys than the store may hold");
            number
        };
        // The handler runs.
        shuttle::thread::yield_now();
        let version = self.change(key, |known| {
            known.completing = end == End::Complete;
            known.held = known.completing && known.forgetting == 0;
        });
        match end {
            End::Complete => {
                block_on(claim.complete(record(number), TTL)).expect("memory is there");
                self.change_if(key, version, |known| {
                    (known.held, known.record) = (false, Some(number));
                });
                return;
            }
            End::Release => return block_on(claim.release()).expect("memory is there"),
            End::Drop => drop(claim),
            End::CancelComplete => drop(claim.complete(record(number), TTL)),
            End::CancelRelease => drop(claim.release()),
        }
        self.change_if(key, version, |known| known.abandoned = true);
    }

    /// Empties the store when all threads have ended: everything that has expired makes room, nothing is left in the quota, and
    /// every key can be claimed.
    pub fn settle(&self) {
        self.step(Step::Expire);
        self.clock.advance(TTL);
        let [in_flight, ..] = self.store.account();
        if in_flight == 0 {
            let begun = block_on(self.store.begin(&storage_key(3), &fingerprint(), &OPTIONS));
            assert!(matches!(begun, Ok(Begin::Claimed(_))), "a store in which everything has expired has room");
        }
        for key in 0..4 {
            block_on(self.store.forget(&storage_key(key))).expect("memory is there");
        }
        self.store.janitor();
        assert_eq!(self.store.account(), [0; 4], "claims, records, entries and bytes are released");
        for key in 0..4 {
            match block_on(self.store.begin(&storage_key(key), &fingerprint(), &OPTIONS)) {
                Ok(Begin::Claimed(claim)) => block_on(claim.release()).expect("memory is there"),
                _ => panic!("a key that should be free is not"),
            }
        }
    }
}

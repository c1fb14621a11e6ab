//! An expiry storm: a million records expire at the same moment, while requests continue.
//!
//! `scripts/storm [records]` runs it. It says how long `begin` and `complete` took in a calm and in the storm, what a thread
//! that does nothing but look at the clock lost to the machine meanwhile, and for how long after the end of the records
//! a full store still refused. With `--lingering` it shows what memory the process keeps when 1 MiB records have gone.
//!
//! The times are those of two threads that work without a pause; on a machine that does other things as well they
//! are only worth something beside the idle thread's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that cannot continue stops")]
#![allow(clippy::cast_possible_truncation, reason = "shares of what fits into memory")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use idem_benches::load::process::{resident, worked};
use idem_runtime::{Begin, BeginOptions, Claim, Fingerprint, MemoryStore, Record, StorageKey, Store, StoreError};

const TTL: Duration = Duration::from_secs(30);
const OPTIONS: BeginOptions = BeginOptions::new(TTL, TTL);
/// The bytes of a record before its content.
const HEAD: usize = 20;
/// The budget of one `begin` or `complete`.
const BUDGET: Duration = Duration::from_millis(20);
const CALM: Duration = Duration::from_secs(2);
const STORM: Duration = Duration::from_secs(8);

fn key(number: usize) -> StorageKey {
    // Spread as a hash is.
    let mut bytes = [0; 32];
    let number = (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[24..].copy_from_slice(&number.to_be_bytes());
    StorageKey::from_bytes(bytes)
}

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([7; 32])
}

fn record(bytes: usize) -> Record {
    let mut whole = vec![0; bytes.max(HEAD)];
    (whole[0], whole[1]) = (1, 1);
    whole[2..10].copy_from_slice(&u64::MAX.to_le_bytes());
    let content = (whole.len() - HEAD) as u64;
    whole[12..HEAD].copy_from_slice(&content.to_le_bytes());
    Record::new(fingerprint(), Bytes::from(whole))
}

/// How long each of many calls took.
#[derive(Default)]
struct Times {
    taken: Vec<Duration>,
    /// The most that one of them worked itself: neither waited for a lock, nor for the processor.
    worked: Duration,
}

impl Times {
    fn timed<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let (start, before) = (Instant::now(), worked());
        let result = call();
        self.worked = self.worked.max(worked() - before);
        self.taken.push(start.elapsed());
        result
    }

    fn print(mut self, what: &str) {
        self.taken.sort_unstable();
        let at = |share: f64| {
            let index = (self.taken.len() as f64 * share) as usize;
            self.taken.get(index.min(self.taken.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let over = self.taken.iter().filter(|time| **time > BUDGET).count();
        println!(
            "{what:32} {:9} calls  p50 {:8.4}  p99 {:8.4}  p99.9 {:8.4}  max {:8.3} ms  over 20 ms: {over}  most work {:.3} ms",
            self.taken.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0),
            self.worked.as_secs_f64() * 1e3
        );
    }
}

/// One `begin` and one `complete`; `None` if the store was full.
fn run_once(
    store: &MemoryStore,
    number: usize,
    ttl: Duration,
    begins: &mut Times,
    completes: &mut Times,
) -> Option<()> {
    let (key, record) = (key(number), record(100));
    match begins.timed(|| store.begin(&key, &fingerprint(), &OPTIONS).now_or_never().unwrap()) {
        Ok(Begin::Claimed(claim)) => {
            completes.timed(|| claim.complete(record, ttl).now_or_never().unwrap()).unwrap();
            Some(())
        }
        Err(StoreError::Full) => None,
        other => panic!("{other:?}"),
    }
}

/// What a thread that only looks at the clock loses to the machine.
fn idle(stop: &AtomicBool) -> Times {
    let mut gaps = Times::default();
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now - last > Duration::from_micros(100) {
            gaps.taken.push(now - last);
        }
        last = now;
        // As a request does between two calls of the store.
        std::hint::spin_loop();
    }
    gaps
}

fn storm(records: usize) {
    let before = resident();
    let store = MemoryStore::builder().max_entries(records + 1000).max_bytes(usize::MAX).build();
    println!("an empty store: {} KiB resident", resident().saturating_sub(before) >> 10);
    let begun = Instant::now();
    let (mut begins, mut completes) = Default::default();
    let end = Instant::now() + Duration::from_secs(10).max(Duration::from_micros(records as u64 * 25));
    for number in 0..records {
        let left = end.saturating_duration_since(Instant::now());
        run_once(&store, number, left, &mut begins, &mut completes).unwrap();
    }
    println!("{records} records in {:.1} s, {} MiB resident", begun.elapsed().as_secs_f64(), resident() >> 20);
    begins.print("begin, filling");
    completes.print("complete, filling");

    let next = AtomicUsize::new(records);
    for (name, until) in [("calm", end), ("storm", end + STORM)] {
        if name == "calm" {
            thread::sleep(end.saturating_duration_since(Instant::now() + CALM));
        }
        let stop = AtomicBool::new(false);
        let mut last_full = None;
        let (mut begins, mut completes) = Default::default();
        let gaps = thread::scope(|scope| {
            let idling = scope.spawn(|| idle(&stop));
            while Instant::now() < until {
                // Records that go at once: what is measured is not how full the store gets.
                let number = next.fetch_add(1, Ordering::Relaxed);
                if run_once(&store, number, Duration::from_millis(1), &mut begins, &mut completes).is_none() {
                    last_full = Some(Instant::now());
                }
            }
            stop.store(true, Ordering::Relaxed);
            idling.join().unwrap()
        });
        begins.print(&format!("begin, {name}"));
        completes.print(&format!("complete, {name}"));
        gaps.print(&format!("gaps of an idle thread, {name}"));
        if let (Some(at), "storm") = (last_full, name) {
            println!(
                "the last refusal for want of room: {:.3} s after the records' end",
                at.duration_since(end).as_secs_f64()
            );
        }
    }
    println!("after it: {:?}, {} MiB resident", store.usage(), resident() >> 20);
    let quiet = Instant::now();
    while store.usage().entries > 0 && quiet.elapsed() < Duration::from_secs(120) {
        thread::sleep(Duration::from_millis(10));
    }
    let (seconds, left) = (quiet.elapsed().as_secs_f64(), store.usage().entries);
    println!(
        "the janitor alone needed {seconds:.1} s for the rest; {left} entries left, {} MiB resident",
        resident() >> 20
    );
}

/// Records of 1 MiB come and go; what is left in memory when they have gone.
fn lingering() {
    const MIB: usize = 1 << 20;
    let before = resident();
    let store = Arc::new(MemoryStore::builder().max_bytes(64 * MIB).build());
    let (mut most, mut most_on_account) = (0, 0);
    for number in 0..4000 {
        let Ok(Begin::Claimed(claim)) = store.begin(&key(number), &fingerprint(), &OPTIONS).now_or_never().unwrap()
        else {
            panic!("the key is free");
        };
        claim.complete(record(MIB), TTL).now_or_never().unwrap().unwrap();
        if number >= 32 {
            assert!(store.forget(&key(number - 32)).now_or_never().unwrap().unwrap());
        }
        most = most.max(resident().saturating_sub(before));
        most_on_account = most_on_account.max(store.usage().bytes);
    }
    println!(
        "4000 records of 1 MiB, at most 33 at once: at most {} MiB on the account, {} MiB resident, {:.2} times the account",
        most_on_account >> 20,
        most >> 20,
        most as f64 / most_on_account as f64
    );
}

fn main() {
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        Some("--lingering") => lingering(),
        records => storm(records.map_or(1_000_000, |records| records.parse().expect("a number of records"))),
    }
}

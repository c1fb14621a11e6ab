//! The store in memory under every order of the steps of two and three threads, and under many orders of more.
//!
//! `SCHEDULES=2000000 cargo test -p idem-schedules` is the long form.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use idem_schedules::scenario::End::{CancelComplete, CancelRelease, Complete, Drop, Release};
use idem_schedules::scenario::Step::{CancelBegin, CancelWait, Expire, Forget, Janitor, TakeOver, Try, Wait};
use idem_schedules::scenario::{RECORD_BYTES, Step, Subject, World};
use idem_schedules::stores::sound::MemoryStore as Sound;
use shuttle::thread;

/// What a key costs the store apart from its record.
const KEY_BYTES: usize = 640;

/// What the store has first, what each thread does, and how much there is room for.
#[derive(Clone)]
struct Scenario {
    before: Vec<Step>,
    threads: Vec<Vec<Step>>,
    entries: usize,
    bytes: usize,
}

fn threads(threads: &[&[Step]]) -> Scenario {
    let threads = threads.iter().map(|steps| steps.to_vec()).collect();
    Scenario { before: Vec::new(), threads, entries: 100, bytes: usize::MAX }
}

impl Scenario {
    fn after(self, before: &[Step]) -> Self {
        Self { before: before.to_vec(), ..self }
    }

    fn entries(self, entries: usize) -> Self {
        Self { entries, ..self }
    }

    fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// One schedule.
    fn run<S: Subject>(&self) {
        let world = World::<S>::new(self.entries, self.bytes);
        world.play(&self.before);
        let spawn = |steps: &Vec<Step>| {
            let (world, steps) = (world.clone(), steps.clone());
            thread::spawn(move || world.play(&steps))
        };
        let (first, others) = self.threads.split_first().expect("a thread");
        let running: Vec<_> = others.iter().map(spawn).collect();
        world.play(first);
        running.into_iter().for_each(|thread| thread.join().unwrap());
        world.settle();
    }

    /// Every order of the steps, up to `most`; how many.
    fn exhaust<S: Subject>(self, most: Option<usize>) -> usize {
        self.count(most, shuttle::check_dfs, Self::run::<S>)
    }

    /// That many orders, at random.
    fn sample<S: Subject>(self, schedules: usize) -> usize {
        self.count(Some(schedules), |run, most| shuttle::check_random(run, most.unwrap()), Self::run::<S>)
    }

    /// As many orders, the same ones each time.
    fn repeat<S: Subject>(self, schedules: usize) -> usize {
        let check = |run, most: Option<usize>| shuttle::check_random_with_seed(run, 1, most.unwrap());
        self.count(Some(schedules), check, Self::run::<S>)
    }

    fn count(
        self,
        most: Option<usize>,
        check: impl FnOnce(Box<dyn Fn() + Send + Sync>, Option<usize>),
        run: fn(&Self),
    ) -> usize {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let count = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(&self);
        };
        check(Box::new(count), most);
        runs.load(Ordering::Relaxed)
    }
}

/// Two threads, each with a step that does something else to a store than all the others.
fn pairs() -> Vec<Scenario> {
    let full = || threads(&[&[Try(0, Complete)], &[Try(1, Complete)]]).entries(1);
    vec![
        threads(&[&[Try(0, Complete)], &[Try(0, Complete)]]),
        threads(&[&[Try(0, Release)], &[Try(0, Drop)]]),
        threads(&[&[Try(0, CancelComplete)], &[TakeOver(0)]]),
        threads(&[&[Try(0, CancelRelease)], &[Forget(0)]]),
        threads(&[&[Try(0, Complete)], &[Expire]]),
        threads(&[&[Try(0, Complete)], &[Wait(0, Complete)]]),
        threads(&[&[Try(0, Release)], &[Wait(0, Release)]]),
        threads(&[&[Try(0, Complete)], &[CancelWait(0), CancelBegin(0)]]),
        threads(&[&[TakeOver(0)], &[Forget(0)]]).after(&[Try(0, Drop)]),
        threads(&[&[TakeOver(0)], &[Try(0, Complete)]]).after(&[Try(0, Drop)]),
        threads(&[&[Try(0, Complete)], &[Janitor]]).after(&[Try(0, Complete), Expire]),
        threads(&[&[Try(0, Complete), Try(0, Complete)], &[Janitor]]).after(&[Try(0, Complete), Expire]),
        threads(&[&[Try(0, Complete)], &[Janitor]]).after(&[Try(0, Complete), Expire]).entries(1),
        // One of them is in the shard of the expired record.
        threads(&[&[Janitor], &[Try(1, Complete), Try(2, Complete), Try(3, Complete)]]).after(&[
            Try(0, Complete),
            Expire,
            Try(1, Complete),
            Try(2, Complete),
            Try(3, Complete),
        ]),
        threads(&[&[Try(0, Drop)], &[Wait(0, Complete)]]),
        threads(&[&[Try(0, Complete)], &[Forget(0)]]).after(&[Try(0, Complete), Expire]),
        threads(&[&[Try(0, Complete)], &[Try(0, Complete)]]).after(&[Try(0, Complete), Expire]),
        full(),
        full().after(&[Try(2, Complete), Expire]),
        full().after(&[Try(0, Complete), Expire]),
        threads(&[&[Try(0, Complete)], &[Try(0, Complete)]])
            .after(&[Try(1, Complete), Try(2, Complete), Expire])
            .entries(2),
        threads(&[&[Try(0, Complete)], &[Try(1, Complete)]]).bytes(2 * KEY_BYTES + RECORD_BYTES),
        threads(&[&[Try(0, Release)], &[Try(1, Release)]]).bytes(KEY_BYTES),
    ]
}

/// Three threads, as short as they can be.
fn triples() -> Vec<Scenario> {
    vec![
        threads(&[&[Try(0, Complete)], &[Expire], &[Forget(0)]]),
        threads(&[&[Try(0, Complete)], &[Expire], &[CancelWait(0)]]),
        threads(&[&[Try(0, Release)], &[Forget(0)], &[Expire]]),
        threads(&[&[Try(0, Drop)], &[Wait(0, Release)], &[Forget(0)]]),
        threads(&[&[Expire], &[Janitor], &[Forget(0)]]).after(&[Try(0, Complete)]),
        threads(&[&[TakeOver(0)], &[Forget(0)], &[Expire]]).after(&[Try(0, Drop)]),
    ]
}

/// Programs of three threads that meet at few keys and at the limits.
fn programs() -> impl Iterator<Item = Scenario> {
    let ends = [Complete, Complete, Complete, Release, Drop, CancelComplete, CancelRelease];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut dice = move |sides: usize| {
        // xorshift: the same programs each time.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % sides
    };
    std::iter::repeat_with(move || {
        let keys = [1, 2, 4][dice(3)];
        let mut step = || {
            let key = u8::try_from(dice(keys)).unwrap();
            let end = ends[dice(ends.len())];
            match dice(12) {
                0..=3 => Try(key, end),
                4..=5 => Wait(key, end),
                6 => TakeOver(key),
                7 => [CancelWait(key), CancelBegin(key)][dice(2)],
                8 => Forget(key),
                9 => Expire,
                10 => Janitor,
                _ => Try(key, Complete),
            }
        };
        let before = (0..2).map(|_| step()).collect();
        let threads = (0..3).map(|_| (0..3).map(|_| step()).collect()).collect();
        let entries = [1, 2, 100][dice(3)];
        let bytes = [usize::MAX, 2 * KEY_BYTES + RECORD_BYTES, KEY_BYTES][dice(3)];
        Scenario { before, threads, entries, bytes }
    })
}

/// Explores every order, unless there are more than the short form has time for; those are sampled, too.
fn explore(name: &str, most: usize, scenarios: Vec<Scenario>) {
    let most = if std::env::var_os("SCHEDULES").is_some() { None } else { Some(most) };
    let mut exhausted = 0;
    for (number, scenario) in scenarios.iter().enumerate() {
        let orders = scenario.clone().exhaust::<Sound>(most);
        let all = most.is_none_or(|most| orders < most);
        exhausted += usize::from(all);
        let sampled = if all { 0 } else { scenario.clone().sample::<Sound>(1000) };
        println!("{name} {number}: {orders} orders{}, {sampled} at random", if all { ", all there are" } else { "" });
    }
    println!("{name}: {exhausted} of {} exhausted", scenarios.len());
    assert!(exhausted * 2 > scenarios.len(), "{exhausted}");
}

#[test]
fn every_order_of_two_threads_is_sound() {
    explore("pair", 25_000, pairs());
}

#[test]
fn every_order_of_three_threads_is_sound() {
    explore("triple", 60_000, triples());
}

#[test]
fn many_orders_of_longer_programs_are_sound() {
    let schedules: usize = std::env::var("SCHEDULES").map_or(20_000, |number| number.parse().unwrap());
    let ran: usize = programs().take(schedules / 50).map(|program| program.sample::<Sound>(50)).sum();
    println!("{ran} orders");
    assert!(ran >= schedules / 50 * 50);
}

/// Whether some order of some program shows what is wrong with a store. The orders are always the same, or the test of a fault that
/// few of them show would sometimes fail.
fn is_found<S: Subject>() -> bool {
    let short = pairs().into_iter().chain(triples()).map(|scenario| (scenario, 2000));
    let scenarios = short.chain(programs().take(300).map(|scenario| (scenario, 20)));
    for (tried, (scenario, schedules)) in scenarios.enumerate() {
        if catch_unwind(AssertUnwindSafe(|| scenario.repeat::<S>(schedules))).is_err() {
            println!("found in scenario {tried}");
            return true;
        }
    }
    false
}

macro_rules! finds {
    ($($test:ident: $fault:ident,)*) => { $(
        #[test]
        fn $test() {
            assert!(is_found::<idem_schedules::stores::$fault::MemoryStore>());
        }
    )* };
}

finds! {
    a_claim_after_a_second_look_is_found: check_then_act,
    a_claim_that_goes_before_its_record_comes_is_found: claim_goes_before_the_record_comes,
    a_drop_that_releases_is_found: drop_releases,
    a_quota_in_two_steps_is_found: counts_in_two_steps,
    a_refusal_that_costs_an_entry_is_found: a_refusal_costs_an_entry,
    an_end_that_wakes_no_one_is_found: end_wakes_no_one,
    a_drop_that_wakes_no_one_is_found: drop_wakes_no_one,
    a_forget_that_wakes_no_one_is_found: forget_wakes_no_one,
    a_waiter_that_listens_too_late_is_found: listens_too_late,
    a_wake_up_before_the_claim_is_free_is_found: wakes_before_the_claim_is_free,
    a_sweep_without_a_second_look_is_found: sweeps_without_a_second_look,
    a_sweep_of_live_records_is_found: sweeps_the_living,
    what_is_swept_and_still_counts_is_found: what_is_swept_counts,
    what_is_released_and_still_counts_is_found: what_is_released_counts,
    a_time_that_comes_before_its_record_is_found: notes_the_time_before_the_record_comes,
    room_that_is_made_without_a_second_look_is_found: makes_room_without_a_second_look,
}

#[test]
fn a_key_costs_here_what_it_costs_the_store() {
    let quota = include_str!("../../../idem-runtime/src/memory/quota.rs");
    assert!(quota.contains(&format!("const KEY_BYTES: usize = {KEY_BYTES};")));
}

#[test]
fn each_fault_has_a_test() {
    let tests = include_str!("schedules.rs");
    for (fault, _) in idem_schedules::faults::FAULTS {
        assert!(tests.contains(&format!("_found: {fault},")), "{fault}");
    }
}

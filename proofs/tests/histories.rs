//! Random histories of calls, compared with the reference: stores, and the engine over them.
//!
//! `PROPTEST_CASES` sets the number of histories, for the long form.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::sync::atomic::Ordering;

use idem_proofs::map_store::MapStore;
use idem_proofs::reference::steps::histories;
use idem_proofs::reference::{Claims, Model, Profile, Said, Step, drive, engine};
use idem_runtime::MemoryStore;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

const IN_PROCESS: Profile = Profile { claims: Claims::LiveWithOwner, capacity: 3 };
const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: 3 };

fn config() -> Config {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 500 };
    Config { cases, failure_persistence: None, ..Config::default() }
}

fn check<F: Future<Output = Result<(), String>>>(profile: Profile, play: impl Fn(Model, Vec<Step>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let checked = TestRunner::new(config()).run(&histories(profile, 60), |(model, steps, seen)| {
        // What is beyond the last step seen is thrown away first when a failure is made smaller.
        seen.iter().for_each(|seen| seen.store(steps.len(), Ordering::SeqCst));
        runtime.block_on(play(model, steps)).map_err(TestCaseError::fail)
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

fn memory() -> MemoryStore {
    MemoryStore::builder().max_entries(IN_PROCESS.capacity).build()
}

fn map() -> MapStore {
    MapStore::new(REMOTE.capacity, None)
}

#[test]
fn the_memory_store_does_as_the_reference() {
    check(IN_PROCESS, |model, steps| async move { drive::play(memory(), model, &steps).await });
}

#[test]
fn a_store_with_leases_does_as_the_reference() {
    check(REMOTE, |model, steps| async move { drive::play(map(), model, &steps).await });
}

#[test]
fn the_engine_over_the_memory_store_does_as_the_reference() {
    check(IN_PROCESS, |model, steps| async move { engine::play(memory(), model, &steps).await });
}

#[test]
fn the_engine_over_a_store_with_leases_does_as_the_reference() {
    check(REMOTE, |model, steps| async move { engine::play(map(), model, &steps).await });
}

/// The histories are worth something only if a store has to say everything in them that it can say.
#[test]
fn histories_go_everywhere() {
    for profile in [IN_PROCESS, REMOTE] {
        let mut runner = TestRunner::deterministic();
        let mut said = Vec::new();
        for _ in 0..200 {
            let (mut model, steps, _) = histories(profile, 60).new_tree(&mut runner).unwrap().current();
            said.extend(steps.iter().map(|step| model.apply(step)));
        }
        let heard = |what: fn(&Said) -> bool| said.iter().filter(|said| what(said)).count();
        assert!(heard(|said| *said == Said::Claimed) > 100);
        assert!(heard(|said| *said == Said::TookOver) > 20);
        assert!(heard(|said| *said == Said::Abandoned) > 20);
        assert!(heard(|said| matches!(said, Said::InFlight { .. })) > 100);
        assert!(heard(|said| matches!(said, Said::Completed { .. })) > 100);
        assert!(heard(|said| *said == Said::Full) > 20);
        assert!(heard(|said| *said == Said::Forgot(true)) > 20);
        assert!(heard(|said| *said == Said::Forgot(false)) > 20);
        // In this process the compiler keeps an owner from losing its claim.
        assert_eq!(heard(|said| *said == Said::Lost) > 20, profile.claims == Claims::LiveForLease);
    }
}

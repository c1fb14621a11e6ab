//! Random histories of calls, compared with the reference: stores, and the engine over them.
//!
//! `PROPTEST_CASES` sets the number of histories, for the long form.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::sync::atomic::Ordering;

use idem_proofs::map_store::MapStore;
use idem_runtime::MemoryStore;
use idem_testkit::reference::steps::histories;
use idem_testkit::reference::{Claims, KEY_BYTES, Model, Profile, RECORD_BYTES, Said, Step, drive, engine};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

const IN_PROCESS: Profile = Profile { claims: Claims::LiveWithOwner, capacity: 3, bytes: None };
/// As many keys as fit, and one response when they are there.
const ONE_ANSWER: Profile = Profile { bytes: Some(IN_PROCESS.capacity * KEY_BYTES + RECORD_BYTES), ..IN_PROCESS };
const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: 3, bytes: None };

fn config() -> Config {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 100 };
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

/// The same limit, in bytes: that many keys with their responses.
fn memory_by_bytes() -> MemoryStore {
    MemoryStore::builder().max_bytes(IN_PROCESS.capacity * (KEY_BYTES + RECORD_BYTES)).build()
}

#[test]
fn the_memory_store_with_a_limit_in_bytes_does_as_the_reference() {
    check(IN_PROCESS, |model, steps| async move { drive::play(memory_by_bytes(), model, &steps).await });
}

#[test]
fn the_engine_over_a_limit_in_bytes_does_as_the_reference() {
    check(IN_PROCESS, |model, steps| async move { engine::play(memory_by_bytes(), model, &steps).await });
}

#[test]
fn responses_without_room_leave_tombstones_as_the_reference_says() {
    check(ONE_ANSWER, |model, steps| async move {
        let store = MemoryStore::builder().max_bytes(ONE_ANSWER.bytes.unwrap()).max_entries(ONE_ANSWER.capacity);
        drive::play(store.build(), model, &steps).await
    });
}

#[test]
fn a_store_that_does_not_count_the_bytes_of_its_records_is_found() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = TestRunner::new(config()).run(&histories(ONE_ANSWER, 60), |(model, steps, seen)| {
        seen.iter().for_each(|seen| seen.store(steps.len(), Ordering::SeqCst));
        runtime.block_on(drive::play(memory(), model, &steps)).map_err(TestCaseError::fail)
    });
    assert!(found.is_err());
}

/// The histories are worth something only if a store has to say everything in them that it can say.
#[test]
fn histories_go_everywhere() {
    for profile in [IN_PROCESS, ONE_ANSWER, REMOTE] {
        let mut runner = TestRunner::deterministic();
        let mut said = Vec::new();
        for _ in 0..200 {
            let (mut model, steps, _) = histories(profile, 60).new_tree(&mut runner).unwrap().current();
            said.extend(steps.iter().map(|step| model.apply(step)));
        }
        let count = |what: fn(&Said) -> bool| said.iter().filter(|said| what(said)).count();
        assert!(count(|said| *said == Said::Claimed) > 100);
        assert!(count(|said| *said == Said::TookOver) > 20, "{profile:?}");
        assert!(count(|said| *said == Said::Abandoned) > 20);
        assert!(count(|said| matches!(said, Said::InFlight { .. })) > 100);
        assert!(count(|said| matches!(said, Said::Completed { .. })) > 50);
        let tombstones = count(|said| matches!(said, Said::Tombstone { .. }));
        assert_eq!(tombstones > 20, profile.bytes.is_some(), "{tombstones}");
        assert!(count(|said| *said == Said::Full) > 20);
        assert!(count(|said| *said == Said::Forgot(true)) > 20);
        assert!(count(|said| *said == Said::Forgot(false)) > 20);
        // In this process the compiler keeps an owner from losing its claim.
        assert_eq!(count(|said| *said == Said::Lost) > 20, profile.claims == Claims::LiveForLease);
    }
}

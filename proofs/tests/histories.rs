//! Random histories of calls, compared with the reference: stores, and the engine over them.
//!
//! `PROPTEST_CASES` sets the number of histories, for the long form.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::sync::atomic::Ordering;

use idem_proofs::map_store::MapStore;
use idem_runtime::MemoryStore;
use idem_testkit::reference::steps::histories;
use idem_testkit::reference::{Claims, KEY_BYTES, Model, Profile, RECORD_BYTES, Step, StoreReply, drive, engine};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

const IN_PROCESS: Profile = Profile { claims: Claims::LiveWithOwner, capacity: 3, bytes: None };
/// As many keys as fit, and one response when they are there.
const ONE_RECORD: Profile = Profile { bytes: Some(IN_PROCESS.capacity * KEY_BYTES + RECORD_BYTES), ..IN_PROCESS };
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
    check(ONE_RECORD, |model, steps| async move {
        let store = MemoryStore::builder().max_bytes(ONE_RECORD.bytes.unwrap()).max_entries(ONE_RECORD.capacity);
        drive::play(store.build(), model, &steps).await
    });
}

#[test]
fn a_store_that_does_not_count_the_bytes_of_its_records_is_found() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = TestRunner::new(config()).run(&histories(ONE_RECORD, 60), |(model, steps, seen)| {
        seen.iter().for_each(|seen| seen.store(steps.len(), Ordering::SeqCst));
        runtime.block_on(drive::play(memory(), model, &steps)).map_err(TestCaseError::fail)
    });
    assert!(found.is_err());
}

/// The histories are worth something only if a store has to say everything in them that it can say.
#[test]
fn histories_go_everywhere() {
    for profile in [IN_PROCESS, ONE_RECORD, REMOTE] {
        let mut runner = TestRunner::deterministic();
        let mut replies = Vec::new();
        for _ in 0..200 {
            let (mut model, steps, _) = histories(profile, 60).new_tree(&mut runner).unwrap().current();
            replies.extend(steps.iter().map(|step| model.apply(step)));
        }
        let count = |what: fn(&StoreReply) -> bool| replies.iter().filter(|reply| what(reply)).count();
        assert!(count(|reply| *reply == StoreReply::Claimed) > 100);
        assert!(count(|reply| *reply == StoreReply::TookOver) > 20, "{profile:?}");
        assert!(count(|reply| *reply == StoreReply::Abandoned) > 20);
        assert!(count(|reply| matches!(reply, StoreReply::InFlight { .. })) > 100);
        assert!(count(|reply| matches!(reply, StoreReply::Completed { .. })) > 50);
        let tombstones = count(|reply| matches!(reply, StoreReply::Tombstone { .. }));
        assert_eq!(tombstones > 20, profile.bytes.is_some(), "{tombstones}");
        assert!(count(|reply| *reply == StoreReply::Full) > 20);
        assert!(count(|reply| *reply == StoreReply::Forgot(true)) > 20);
        assert!(count(|reply| *reply == StoreReply::Forgot(false)) > 20);
        // In this process the compiler keeps an owner from losing its claim.
        assert_eq!(count(|reply| *reply == StoreReply::Lost) > 20, profile.claims == Claims::LiveForLease);
    }
}

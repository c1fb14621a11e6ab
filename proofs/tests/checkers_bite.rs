//! Every checker finds the fault that it is there for, and lets the sound one pass.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed check panics")]

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::routing::post;
use http::request::Parts;
use http::{Request, StatusCode};
use idem_axum::{IdempotencyLayer, idempotent};
use idem_proofs::faulty::{Fault, ReleaseOnDrop, joined_fingerprint, replay_before_extractors};
use idem_proofs::map_store::MapStore;
use idem_runtime::conformance::{self, attached};
use idem_runtime::{
    Attempt, Begin, BeginOptions, Claim, Executed, Fingerprint, Idempotency, MemoryStore, Outcome, Record, Recording,
    RefusalReason, Rules, RunResult, StorageKey, Store,
};
use idem_testkit::intercept::Intercept;
use idem_testkit::reference::steps::histories;
use idem_testkit::reference::{Claims, LEASE, Model, Profile, Step, drive, engine};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tower::ServiceExt;

const CAPACITY: usize = 3;
const IN_PROCESS: Profile = Profile { claims: Claims::LiveWithOwner, capacity: CAPACITY, bytes: None };
const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: CAPACITY, bytes: None };

fn map(fault: impl Into<Option<Fault>>) -> MapStore {
    MapStore::new(CAPACITY, fault.into())
}

fn memory() -> MemoryStore {
    MemoryStore::builder().max_entries(CAPACITY).build()
}

/// Histories against the reference, the same ones each time; the error is the shortest history that went wrong.
fn follows<F: Future<Output = Result<(), String>>>(
    profile: Profile,
    play: impl Fn(Model, Vec<Step>) -> F,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let checked = runner.run(&histories(profile, 60), |(model, steps, seen)| {
        seen.iter().for_each(|seen| seen.store(steps.len(), Ordering::SeqCst));
        runtime.block_on(play(model, steps)).map_err(TestCaseError::fail)
    });
    checked.map_err(|error| error.to_string())
}

fn store_follows<S: Store>(profile: Profile, make: impl Fn() -> S) -> Result<(), String> {
    let make = &make;
    follows(profile, |model, steps| async move { drive::play(make(), model, &steps).await })
}

fn engine_follows<S: Store + Clone>(profile: Profile, make: impl Fn() -> S) -> Result<(), String> {
    let make = &make;
    follows(profile, |model, steps| async move { engine::play(make(), model, &steps).await })
}

/// Whether a case of the conformance suite passes.
macro_rules! conforms {
    ($case:ident, $store:expr) => {{
        let store = attached($store);
        tokio::spawn(async move { conformance::$case(&store).await }).await.is_ok()
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sound_store_with_leases_passes_the_whole_suite() {
    conformance::all(|| async { MapStore::new(10_000, None) }).await;
}

#[test]
fn the_sound_stores_follow_the_reference() {
    store_follows(IN_PROCESS, memory).unwrap();
    store_follows(REMOTE, || map(None)).unwrap();
    engine_follows(IN_PROCESS, memory).unwrap();
    engine_follows(REMOTE, || map(None)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_check_then_act() {
    assert!(conforms!(one_of_many_concurrent_begins_claims, MapStore::new(10_000, None)));
    assert!(conforms!(one_of_many_concurrent_begins_claims, MemoryStore::new()));
    assert!(!conforms!(one_of_many_concurrent_begins_claims, MapStore::new(10_000, Some(Fault::CheckThenAct))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_a_missing_owner_token() {
    assert!(conforms!(a_previous_owner_changes_nothing, MapStore::new(10, None)));
    assert!(conforms!(a_previous_owner_changes_nothing, memory()));
    assert!(!conforms!(a_previous_owner_changes_nothing, MapStore::new(10, Some(Fault::NoOwnerToken))));
    for case in [
        conforms!(an_owner_that_is_only_late_keeps_its_claim, map(Fault::NoOwnerToken)),
        conforms!(an_abandoned_claim_can_be_taken_over_once, map(Fault::NoOwnerToken)),
        conforms!(of_many_new_owners_one_takes_over, map(Fault::NoOwnerToken)),
    ] {
        assert!(!case);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_an_abandoned_claim_that_others_can_have() {
    assert!(conforms!(an_abandoned_claim_is_in_flight_for_another_fingerprint, map(None)));
    let faulty = map(Fault::AbandonedForAll);
    assert!(!conforms!(an_abandoned_claim_is_in_flight_for_another_fingerprint, faulty));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_a_record_of_an_owner_whose_claim_has_ended() {
    assert!(conforms!(a_key_that_is_free_has_no_owner, map(None)));
    assert!(!conforms!(a_key_that_is_free_has_no_owner, map(Fault::RecordsUnderAFreeKey)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_a_release_that_cannot_be_repeated() {
    assert!(conforms!(a_cloned_claim_repeats_its_release, MapStore::new(10, None)));
    assert!(!conforms!(a_cloned_claim_repeats_its_release, MapStore::new(10, Some(Fault::RepeatedReleaseIsLost))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_a_claim_that_vanishes_with_its_lease() {
    assert!(!conforms!(a_previous_owner_changes_nothing, MapStore::new(10, Some(Fault::ClaimVanishesWithLease))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_a_claim_released_on_drop() {
    assert!(conforms!(a_dropped_claim_is_abandoned_and_not_free, MemoryStore::new()));
    assert!(!conforms!(a_dropped_claim_is_abandoned_and_not_free, Intercept::new(MemoryStore::new(), ReleaseOnDrop)));
    assert!(!conforms!(
        a_begin_that_is_dropped_leaves_no_claim_without_an_end,
        Intercept::new(MemoryStore::new(), ReleaseOnDrop)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_eviction() {
    assert!(conforms!(keys_do_not_touch_each_other, MapStore::new(200, None)));
    assert!(conforms!(keys_do_not_touch_each_other, MemoryStore::builder().max_entries(200).build()));
    assert!(!conforms!(keys_do_not_touch_each_other, MapStore::new(199, Some(Fault::EvictsTheOldest))));
    assert!(conforms!(nothing_live_is_evicted, MapStore::new(1000, None)));
    assert!(!conforms!(nothing_live_is_evicted, MapStore::new(1000, Some(Fault::EvictsTheOldest))));
}

#[test]
fn histories_find_a_claim_released_on_drop() {
    store_follows(IN_PROCESS, || Intercept::new(memory(), ReleaseOnDrop)).unwrap_err();
    engine_follows(IN_PROCESS, || Intercept::new(memory(), ReleaseOnDrop)).unwrap_err();
}

/// Faults that need no concurrency: the same histories find them in the store and through the engine.
fn histories_find(fault: Fault) {
    let found = store_follows(REMOTE, || map(fault)).unwrap_err();
    println!("{fault:?}: {found}");
    engine_follows(REMOTE, || map(fault)).unwrap_err();
}

#[test]
fn histories_find_a_missing_owner_token() {
    histories_find(Fault::NoOwnerToken);
}

#[test]
fn histories_find_eviction() {
    histories_find(Fault::EvictsTheOldest);
}

#[test]
fn histories_find_a_lease_that_is_the_ttl() {
    histories_find(Fault::ClaimVanishesWithLease);
    histories_find(Fault::RecordDiesWithLease);
    histories_find(Fault::ClaimOutlivesLease);
}

#[test]
fn histories_find_records_that_have_expired() {
    histories_find(Fault::ReportsExpired);
}

/// A record that cannot be read refuses the retry, and its handler does not run again.
async fn unreadable_is_refused(store: impl Store + Clone) -> bool {
    let engine = Idempotency::new(store.clone());
    let (key, fingerprint) = (StorageKey::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]));
    let Ok(Begin::Claimed(claim)) = store.begin(&key, &fingerprint, &BeginOptions::new(LEASE, LEASE)).await else {
        panic!("the key is free")
    };
    claim.complete(Record::new(fingerprint, "from another version".into()), LEASE).await.unwrap();
    let handler = |_| async { Executed { response: (), recording: Recording::Done(Outcome::NotReplayable) } };
    match engine.run(Attempt::new(key, fingerprint, Rules::DEFAULT), handler).await {
        Err(RefusalReason::StoreUnavailable(_)) => true,
        Ok(RunResult::Executed(())) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unreadable_record_that_counts_as_none_is_found() {
    assert!(unreadable_is_refused(memory()).await);
    assert!(unreadable_is_refused(map(None)).await);
    assert!(!unreadable_is_refused(map(Fault::UnreadableIsAMiss)).await);
}

/// Two different lists of parts with one fingerprint, if there are any among the short lists of short parts.
fn collision(fingerprint: impl Fn(&[&[u8]]) -> Fingerprint) -> Option<[Vec<Vec<u8>>; 2]> {
    let letters = ["", "a", "b", "aa", "ab", "ba", "\0", "\u{1}", "a\0"].map(|part| part.as_bytes().to_vec());
    let mut lists = vec![Vec::new()];
    let mut seen = HashMap::new();
    for _ in 0..3 {
        let longer = |list: &Vec<Vec<u8>>| letters.clone().map(|part| [&list[..], &[part]].concat());
        lists.extend(lists.iter().flat_map(longer).collect::<Vec<_>>());
        lists.sort();
        lists.dedup();
    }
    for list in lists {
        let parts: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
        if let Some(other) = seen.insert(*fingerprint(&parts).as_bytes(), list.clone()) {
            return Some([other, list]);
        }
    }
    None
}

#[test]
fn a_fingerprint_without_lengths_is_found() {
    let sound = collision(|parts| {
        let mut builder = Fingerprint::builder();
        parts.iter().for_each(|part| builder.part(b'p', part));
        builder.finish()
    });
    assert_eq!(sound, None);
    assert!(collision(joined_fingerprint).is_some());
}

/// An extractor that lets only one caller in.
struct Caller;

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let known = parts.headers.get("x-caller").is_some_and(|caller| caller == "known");
        known.then_some(Self).ok_or(StatusCode::UNAUTHORIZED)
    }
}

#[idempotent(scope = global)]
async fn guarded(_: Caller) -> (StatusCode, &'static str) {
    (StatusCode::CREATED, "secret")
}

async fn unguarded(_: Caller) -> (StatusCode, &'static str) {
    (StatusCode::CREATED, "secret")
}

/// Extractors run on replays, too: they guard the record, and what they reject does not use up the key.
async fn extractors_guard_the_record(app: Router) -> bool {
    let ask = async |key: &str, caller: &str| {
        let request = Request::post("/").header("idempotency-key", key).header("x-caller", caller);
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    };
    let mut responses = Vec::new();
    for (key, caller) in [("a", "known"), ("a", "unknown"), ("a", "known"), ("b", "unknown"), ("b", "known")] {
        responses.push(ask(key, caller).await);
    }
    let (created, refused) = (StatusCode::CREATED, StatusCode::UNAUTHORIZED);
    responses == [created, refused, created, refused, created]
}

#[tokio::test]
async fn a_replay_before_the_extractors_is_found() {
    let layer = IdempotencyLayer::new(Idempotency::in_memory());
    assert!(extractors_guard_the_record(Router::new().route("/", post(guarded)).layer(layer)).await);
    let faulty = replay_before_extractors(Router::new().route("/", post(unguarded)));
    assert!(!extractors_guard_the_record(faulty).await);
}

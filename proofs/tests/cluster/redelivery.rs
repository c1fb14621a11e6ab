//! Whatever a queue delivers again, and wherever consumers are dropped or die: as many parcels as there are orders.
//!
//! `SEEDS=10000 cargo test -p idem-proofs --features cluster --test cluster redelivery::` is the long form; `SEED=17` repeats one seed.

use std::collections::BTreeMap;

use idem_axum::Idempotency;
use idem_proofs::cluster::redelivery::{Fault, Findings, Mistake, dropped_once, in_one_process, in_processes, open};
use idem_testkit::postgres::Postgres;
use idem_testkit::redis::Redis;

/// Orders of one run. Some have several messages.
const ORDERS: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// Runs seeds, as many as `SEEDS` says, and prints those that break a promise. Without `SEEDS` these are `short` ones, and more
/// until each of `kinds` has happened: a run in which nothing goes wrong proves nothing.
fn hold(short: u64, kinds: &[&str], run: impl Fn(u64) -> Findings) {
    let (only, wanted) = (number("SEED"), number("SEEDS"));
    let seeds = only.map_or(0..wanted.unwrap_or(5 * short), |seed| seed..seed + 1);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut failed = String::new();
    for seed in seeds {
        let rare = kinds.iter().any(|kind| seen.get(kind).is_none_or(|times| *times < 3));
        if only.or(wanted).is_none() && seed >= short && !rare {
            break;
        }
        let findings = run(seed);
        if !findings.faults().is_empty() {
            failed += &findings.to_string();
        }
        for (what, times) in findings.seen {
            *seen.entry(what).or_default() += times;
        }
    }
    println!("{seen:#?}");
    assert!(failed.is_empty(), "{failed}");
    for kind in kinds {
        assert!(only.is_some() || seen.get(kind).is_some_and(|times| *times >= 3), "hardly any: {kind}: {seen:#?}");
    }
}

const IN_PROCESS: [&str; 6] = ["shipped", "failed", "panicked", "in flight", "mismatch", "a consumer was dropped"];

#[test]
fn in_memory_each_order_is_shipped_once() {
    hold(200, &IN_PROCESS, |seed| in_one_process(seed, ORDERS, None));
}

#[test]
fn in_memory_a_seed_tells_the_same_story_twice() {
    for seed in 0..3 {
        let [one, other] = [(); 2].map(|()| in_one_process(seed, ORDERS, None).to_string());
        assert_eq!(one, other);
    }
}

fn over(store: &str) {
    let kinds = [&IN_PROCESS[..], &["a process died", "outcome unknown"]].concat();
    hold(4, &kinds, |seed| in_processes(seed, ORDERS, store, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis_each_order_is_shipped_once() {
    let redis = Redis::start().await;
    tokio::task::block_in_place(|| over(&redis.url()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_postgres_each_order_is_shipped_once() {
    let postgres = Postgres::quick().await;
    tokio::task::block_in_place(|| over(&postgres.url()));
}

#[test]
fn over_sqlite_each_order_is_shipped_once() {
    let folder = tempfile::tempdir().unwrap();
    over(&format!("sqlite://{}", folder.path().join("idempotency.db").display()));
}

/// Drops the consumer after its first poll, after its second, and so on, until it is not dropped before its end.
async fn drop_at_each_point(idempotency: Idempotency) {
    for polls in 0.. {
        let (parcels, dropped) = dropped_once(&idempotency, polls, polls).await;
        assert_eq!(parcels, 1, "dropped after {polls} polls");
        if !dropped {
            assert!(polls >= 3, "there are hardly any points");
            return;
        }
    }
}

#[tokio::test]
async fn in_memory_a_consumer_that_is_dropped_at_any_point_ships_once() {
    drop_at_each_point(Idempotency::in_memory()).await;
}

#[tokio::test]
async fn over_redis_a_consumer_that_is_dropped_at_any_point_ships_once() {
    let redis = Redis::start().await;
    drop_at_each_point(open(&redis.url(), "points").await).await;
}

#[tokio::test]
async fn over_postgres_a_consumer_that_is_dropped_at_any_point_ships_once() {
    let postgres = Postgres::quick().await;
    drop_at_each_point(open(&postgres.url(), "points").await).await;
}

#[tokio::test]
async fn over_sqlite_a_consumer_that_is_dropped_at_any_point_ships_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite://{}", folder.path().join("idempotency.db").display());
    drop_at_each_point(open(&store, "points").await).await;
}

/// The faults of these seeds with a mistake, and no others.
fn faults_of(mistake: Mistake, seeds: u64) -> Vec<Fault> {
    (0..seeds).flat_map(|seed| in_one_process(seed, ORDERS, Some(mistake)).faults()).collect()
}

#[test]
fn a_consumer_that_acknowledges_in_flight_loses_orders() {
    let faults = faults_of(Mistake::AcknowledgesInFlight, 50);
    assert!(faults.iter().any(|fault| matches!(fault, Fault::Lost(_))), "{faults:?}");
    assert!(!faults.iter().any(|fault| matches!(fault, Fault::Twice(_))), "{faults:?}");
}

#[test]
fn a_consumer_that_acknowledges_first_loses_orders() {
    let faults = faults_of(Mistake::AcknowledgesFirst, 10);
    assert!(faults.iter().any(|fault| matches!(fault, Fault::Lost(_))), "{faults:?}");
    assert!(!faults.iter().any(|fault| matches!(fault, Fault::Twice(_))), "{faults:?}");
}

#[test]
fn a_consumer_without_a_key_or_with_the_wrong_one_ships_twice() {
    for mistake in [Mistake::Unprotected, Mistake::KeyOfDelivery] {
        let faults = faults_of(mistake, 10);
        assert!(faults.iter().any(|fault| matches!(fault, Fault::Twice(_))), "{mistake:?}: {faults:?}");
    }
}

/// Only a process that dies can show it.
#[test]
fn a_consumer_that_reruns_what_is_unknown_ships_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite://{}", folder.path().join("idempotency.db").display());
    let twice = (0..10).any(|seed| {
        let faults = in_processes(seed, ORDERS, &store, Some(Mistake::Reruns)).faults();
        faults.iter().any(|fault| matches!(fault, Fault::Twice(_)))
    });
    assert!(twice, "no process died between the effect and the record");
}

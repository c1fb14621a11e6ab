//! That every row measures what it says. The numbers of these runs say nothing.
#![allow(clippy::unwrap_used, reason = "a failed check panics")]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idem_benches::Failure;
use idem_benches::stores::place::Place;
use idem_benches::stores::subject::{Load, StoreSubject, Subject, Work, key};
use idem_runtime::{MemoryStore, StorageKey};

/// The whole program, as `scripts/bench-stores --quick` runs it, with every table and every row.
#[test]
fn a_quick_run_has_every_row_and_each_takes_the_round_trips_of_the_bare_commands() {
    let output = Command::new(env!("CARGO_BIN_EXE_stores")).arg("--quick").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stderr));
    for table in ["stores-machine", "stores-ratios", "stores-throughput", "stores-transactions"] {
        assert!(said.contains(&format!("\n## {table}\n")), "no table {table} in:\n{said}");
    }
    let rows =
        |start: &str, end: &str| said.lines().filter(|line| line.starts_with(start) && line.ends_with(end)).count();
    for (store, kinds) in [("RedisStore", 2), ("PostgresStore", 1), ("PostgresStore, fsync off", 1)] {
        assert_eq!(rows(&format!("| {store} | first execution |"), "| 2 and 2 |"), kinds, "{store} in:\n{said}");
        assert_eq!(rows(&format!("| {store} | replay |"), "| 1 and 1 |"), kinds, "{store} in:\n{said}");
    }
    assert_eq!(rows("| SqliteStore | ", "| no network |"), 2, "{said}");
    for row in ["bare transaction", "a record by hand", "`Tx`", "a store with leases"] {
        for place in ["PostgresStore", "PostgresStore, commits 2 ms slower", "PostgresStore, fsync off"] {
            assert_eq!(rows(&format!("| {place} | {row} |"), "|"), 1, "{said}");
        }
    }
    for store in ["MemoryStore", "RedisStore", "PostgresStore", "SqliteStore"] {
        assert_eq!(rows(&format!("| {store} | **"), "|"), 1, "{store} in:\n{said}");
    }
}

/// What is said of work that the keys are not fit for.
async fn complaint(subject: &mut dyn Subject, work: Work, keys: &[StorageKey]) -> String {
    subject.batch(work, keys).await.err().map_or_else(|| "nothing".to_owned(), |failure: Failure| failure.to_string())
}

#[tokio::test]
async fn work_that_is_something_else_fails_for_stores_and_for_bare_commands() {
    let keys = [key(1), key(2)];
    let mut subjects: Vec<Box<dyn Subject>> = vec![Box::new(StoreSubject::new(MemoryStore::new()))];
    let places = Place::all().await.unwrap();
    for place in &places {
        if let Some(compared) = place.compared(place.port()).await.unwrap() {
            subjects.push(compared.store);
            subjects.extend(compared.bare.into_iter().map(|(_, bare)| bare));
        }
    }
    assert!(subjects.len() >= 8);
    for subject in &mut subjects {
        assert_ne!(complaint(&mut **subject, Work::Replay, &keys).await, "nothing", "there is no record yet");
        // The look of a store for a record has claimed the first key.
        let fresh = [key(3), key(4)];
        assert_eq!(complaint(&mut **subject, Work::Execute, &fresh).await, "nothing");
        assert_eq!(complaint(&mut **subject, Work::Replay, &fresh).await, "nothing");
        assert_ne!(complaint(&mut **subject, Work::Execute, &fresh).await, "nothing", "the keys are not new");
    }
}

#[tokio::test]
async fn a_load_counts_its_executions() {
    let store = MemoryStore::new();
    let next = Arc::default();
    let rate = StoreSubject::new(store.clone()).load(3, Duration::from_millis(20), Arc::clone(&next)).await.unwrap();
    let completed = store.usage().completed as f64;
    assert_eq!(store.usage().completed as u64, next.load(Ordering::SeqCst));
    assert!(completed >= 3.0 && rate <= completed / 0.02, "{rate} per second, {completed} in all");
}

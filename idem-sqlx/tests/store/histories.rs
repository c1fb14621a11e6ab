//! Random histories of calls, compared with the reference that serves every store.
//!
//! The time of a history is not the database's: when it advances, every deadline in the table moves back by as much, which
//! is the same to every caller. `PROPTEST_CASES` sets the number of histories, for the long form.
#![cfg(all(feature = "postgres", feature = "sqlite"))]

use std::path::Path;

use idem_sqlx::{PostgresStore, SqliteStore};
use idem_testkit::postgres::Postgres;
use idem_testkit::reference::steps::histories;
use idem_testkit::reference::{Claims, Model, Profile, Step, drive, engine};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tempfile::TempDir;

use crate::clocked_store::{Beside, Stretched, stretch};

const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: usize::MAX, bytes: None };

fn check<F: Future<Output = Result<(), String>>>(play: impl Fn(Model, Vec<Step>) -> F) {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 80 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let checked = TestRunner::new(config).run(&histories(REMOTE, 60), |(model, steps, seen)| {
        // What is beyond the last step seen is thrown away first when a failure is made smaller.
        seen.iter().for_each(|seen| seen.store(steps.len(), std::sync::atomic::Ordering::SeqCst));
        runtime.block_on(play(model, steps)).map_err(TestCaseError::fail)
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

fn server() -> Postgres {
    // The server outlives this runtime, and each history has its own store and connections.
    tokio::runtime::Runtime::new().unwrap().block_on(Postgres::quick())
}

async fn in_postgres(server: &Postgres) -> Stretched<PostgresStore> {
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    store.migrate().await.unwrap();
    let beside = Beside::postgres(&server.url()).await;
    beside.empty().await;
    stretch(store, beside)
}

/// In memory if possible: nothing here is about disks.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

async fn in_sqlite(folder: &TempDir) -> Stretched<SqliteStore> {
    let file = folder.path().join("idempotency.db");
    let store = SqliteStore::open(&file).await.unwrap();
    store.migrate().await.unwrap();
    let beside = Beside::sqlite(&file).await;
    beside.empty().await;
    stretch(store, beside)
}

#[test]
fn the_postgres_store_does_as_the_reference() {
    let server = server();
    let server = &server;
    check(|model, steps| async move { drive::play(in_postgres(server).await, model, &steps).await });
}

#[test]
fn the_engine_over_the_postgres_store_does_as_the_reference() {
    let server = server();
    let server = &server;
    check(|model, steps| async move { engine::play(in_postgres(server).await, model, &steps).await });
}

#[test]
fn the_sqlite_store_does_as_the_reference() {
    let folder = folder();
    let folder = &folder;
    check(|model, steps| async move { drive::play(in_sqlite(folder).await, model, &steps).await });
}

#[test]
fn the_engine_over_the_sqlite_store_does_as_the_reference() {
    let folder = folder();
    let folder = &folder;
    check(|model, steps| async move { engine::play(in_sqlite(folder).await, model, &steps).await });
}

//! Several processes on one file, of which some are killed. The processes are this test once more, told by their environment
//! what to be.
#![cfg(feature = "sqlite")]

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use idem_runtime::{Begin, Claim, Store};
use idem_sqlx::SqliteStore;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::common::*;

const FILE: &str = "IDEM_TEST_FILE";
const KEYS: u64 = 300;

/// Starts this test binary once more, to run the test `role` on `file` alone.
fn child(role: &str, file: &Path) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sqlite_processes::{role}"), "--nocapture", "--test-threads=1"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, said)
}

/// The file, in a process that was started for it.
fn file_of_child() -> Option<std::ffi::OsString> {
    std::env::var_os(FILE)
}

/// What a child says of itself follows this word; the test runner says other things.
const SAYS: &str = "idem:";

fn say(what: &str) {
    println!("\n{SAYS}{what}");
}

async fn next(said: &mut Lines<BufReader<ChildStdout>>) -> Option<String> {
    while let Some(line) = said.next_line().await.unwrap() {
        if let Some(what) = line.strip_prefix(SAYS) {
            return Some(what.to_owned());
        }
    }
    None
}

#[tokio::test]
async fn a_child_that_claims_and_completes_every_key() {
    let Some(file) = file_of_child() else { return };
    let store = SqliteStore::open(file).await.unwrap();
    store.migrate().await.unwrap();
    for number in 0..KEYS {
        match store.begin(&numbered(number), &MINE, &OPTIONS).await {
            Ok(Begin::Claimed(claim)) => {
                say(&number.to_string());
                claim.complete(record("response"), TTL).await.unwrap();
            }
            Ok(Begin::InFlight(_) | Begin::Completed(_)) => {}
            begun => panic!("{}", shown(&begun)),
        }
    }
    say("end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_that_want_every_key_get_each_once_and_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idempotency.db");
    let children: Vec<_> = (0..4).map(|_| child("a_child_that_claims_and_completes_every_key", &file)).collect();
    let mut winners: HashMap<String, usize> = HashMap::new();
    let mut ends = 0;
    for (mut child, mut said) in children {
        while let Some(what) = next(&mut said).await {
            if what == "end" { ends += 1 } else { *winners.entry(what).or_default() += 1 }
        }
        assert!(child.wait().await.unwrap().success(), "a child met an error; what it said is above");
    }
    assert_eq!(ends, 4);
    assert_eq!(winners.len() as u64, KEYS, "every key was claimed");
    assert!(winners.values().all(|&winners| winners == 1), "{winners:?}");
    let store = SqliteStore::open(&file).await.unwrap();
    for number in 0..KEYS {
        assert_eq!(state_of(&store, &numbered(number)).await, "completed: response");
    }
}

#[tokio::test]
async fn a_child_that_says_what_was_acknowledged() {
    let Some(file) = file_of_child() else { return };
    let store = SqliteStore::open(file).await.unwrap();
    store.migrate().await.unwrap();
    for number in 0.. {
        let claim = claim(&store, &numbered(number)).await;
        say(&format!("claimed {number}"));
        if number % 2 == 0 {
            claim.complete(record("response"), TTL).await.unwrap();
            say(&format!("completed {number}"));
        }
    }
}

#[tokio::test]
async fn after_kill_9_of_the_writer_all_that_was_acknowledged_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idempotency.db");
    for round in 0..3 {
        let (mut child, mut said) = child("a_child_that_says_what_was_acknowledged", &file);
        let mut acknowledged = Vec::new();
        while acknowledged.len() < 200 + 50 * round {
            acknowledged.push(next(&mut said).await.expect("the child goes on"));
        }
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        while let Some(what) = next(&mut said).await {
            acknowledged.push(what);
        }
        let store = SqliteStore::open(&file).await.unwrap();
        let completed: Vec<_> = acknowledged.iter().filter_map(|what| what.strip_prefix("completed ")).collect();
        for what in &acknowledged {
            let (what, number) = what.split_once(' ').unwrap();
            let state = state_of(&store, &numbered(number.parse().unwrap())).await;
            match what {
                "completed" => assert_eq!(state, "completed: response", "record {number} was acknowledged"),
                // The child may have been killed after its completion and before it said so.
                _ if completed.contains(&number) => {}
                _ => assert!(["in flight", "completed: response"].contains(&&*state), "claim {number}: {state}"),
            }
        }
        let mut connection = SqliteConnectOptions::new().filename(&file).connect().await.unwrap();
        let check: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
        assert_eq!(check, "ok");
        sqlx::query("DELETE FROM idempotency").execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_of_a_process_that_was_killed_is_abandoned_when_its_lease_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idempotency.db");
    let (mut child, mut said) = child("a_child_that_dies_with_a_claim", &file);
    assert_eq!(next(&mut said).await.unwrap(), "claimed");
    child.start_kill().unwrap();
    child.wait().await.unwrap();
    let store = SqliteStore::open(&file).await.unwrap();
    let mut new_owner = abandoned(&store, &numbered(1)).await;
    new_owner.renew(LEASE).await.unwrap();
    new_owner.complete(record("new owner"), TTL).await.unwrap();
    assert_eq!(state_of(&store, &numbered(1)).await, "completed: new owner");
}

#[tokio::test]
async fn a_child_that_dies_with_a_claim() {
    let Some(file) = file_of_child() else { return };
    let store = SqliteStore::open(file).await.unwrap();
    store.migrate().await.unwrap();
    let _claim = claim_for(&store, &numbered(1), Duration::from_secs(1), TTL).await;
    say("claimed");
    std::future::pending::<()>().await;
}

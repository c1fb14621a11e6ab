//! `consumer` and `cron`, run as their users run them.
#![cfg(feature = "jobs")]
#![allow(clippy::unwrap_used, reason = "a test says what it expected by failing")]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use idem_testkit::postgres::Postgres;

fn run(example: &str, database: Option<&str>) -> String {
    // Cargo puts examples beside the folder of the tests.
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples").join(example);
    assert!(program.exists(), "{} is not built: run `cargo build --examples --all-features` first", program.display());
    let mut example = Command::new(program);
    if let Some(database) = database {
        example.env("DATABASE_URL", database);
    }
    let output = example.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn the_consumer_ships_each_order_once_and_leaves_nothing_behind() {
    let server = Postgres::quick().await;
    let text = run("consumer", Some(&server.url()));
    assert!(text.contains("the acknowledgement is lost"), "{text}");
    assert!(text.ends_with("orders: 8, parcels: 8, dead letters: 1\n"), "{text}");
    assert_eq!(server.sql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'idem%'").trim(), "0");
}

#[test]
fn of_three_processes_one_makes_the_report_of_a_minute() {
    let text = run("cron", None);
    let mut made: HashMap<&str, usize> = HashMap::new();
    let mut found = 0;
    for line in text.lines() {
        let (minute, rest) = line.split_once(": ").unwrap();
        if rest.ends_with("makes the report") {
            *made.entry(minute).or_default() += 1;
        } else {
            assert!(rest.contains("finds the report"), "{line}");
            found += 1;
        }
    }
    assert!(made.len() >= 4, "{text}");
    assert!(made.values().all(|times| *times == 1), "{text}");
    // Three processes, of four minutes each.
    assert_eq!(made.len() + found, 12, "{text}");
}

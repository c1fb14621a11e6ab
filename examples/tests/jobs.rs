//! `consumer` and `cron`, run as their users run them.
#![cfg(feature = "jobs")]
#![allow(clippy::unwrap_used, reason = "a test says what it expected by failing")]

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

fn run(example: &str) -> String {
    // Cargo puts examples beside the folder of the tests.
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples").join(example);
    assert!(program.exists(), "{} is not built: run `cargo build --examples --all-features` first", program.display());
    let output = Command::new(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_consumer_ships_each_order_once() {
    let text = run("consumer");
    assert!(text.contains("the acknowledgement is lost"), "{text}");
    assert!(text.ends_with("orders: 8, parcels: 8, dead letters: 1\n"), "{text}");
}

#[test]
fn of_three_processes_one_makes_the_report_of_a_minute() {
    let text = run("cron");
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

//! `bank`, killed in the middle of its work.
#![cfg(all(unix, feature = "bank"))]
#![allow(clippy::unwrap_used, reason = "a test says what it expected by failing")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use idem_testkit::postgres::Postgres;

fn program() -> PathBuf {
    // Cargo puts examples beside the folder of the tests.
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/bank");
    assert!(program.exists(), "{} is not built: run `cargo build --examples --all-features` first", program.display());
    program
}

fn kill(database: Option<&str>) {
    let mut kill = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bank/kill"));
    let folder = tempfile::tempdir().unwrap();
    kill.arg("40").arg(program()).env_remove("DATABASE_URL").env("TMPDIR", folder.path());
    if let Some(database) = database {
        kill.env("DATABASE_URL", database);
    }
    let output = kill.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("booked: 40, money: 3000 of 3000"), "{text}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn over_sqlite_the_money_is_right() {
    kill(None);
}

#[tokio::test]
async fn over_postgresql_the_money_is_right() {
    let server = Postgres::quick().await;
    kill(Some(&server.url()));
}

/// As its users name it, and not in the root folder.
#[test]
fn a_file_of_sqlite_is_in_the_folder_in_which_the_bank_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut bank = Command::new(program());
    bank.current_dir(folder.path()).env("DATABASE_URL", "sqlite://bank.db").env("PORT", "0").stdout(Stdio::piped());
    let mut bank = bank.spawn().unwrap();
    // It opens its file before it says so.
    let mut first_line = String::new();
    BufReader::new(bank.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
    bank.kill().unwrap();
    bank.wait().unwrap();
    assert!(first_line.starts_with("The bank is open at "), "{first_line}");
    assert!(folder.path().join("bank.db").exists());
}

//! `bank`, killed in the middle of its work.
#![cfg(all(unix, feature = "bank"))]
#![allow(clippy::unwrap_used, reason = "a test says what it expected by failing")]

use std::path::Path;
use std::process::Command;

use idem_testkit::postgres::Postgres;

fn kill(database: Option<&str>) {
    // Cargo puts examples beside the folder of the tests.
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/bank");
    assert!(program.exists(), "{} is not built: run `cargo build --examples --all-features` first", program.display());
    let mut kill = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bank/kill"));
    let folder = tempfile::tempdir().unwrap();
    kill.arg("40").arg(program).env_remove("DATABASE_URL").env("TMPDIR", folder.path());
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

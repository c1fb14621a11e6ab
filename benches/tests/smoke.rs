//! That every row measures what it says, and that a benchmark which does not fails. The numbers of these runs say nothing.

use std::process::Command;

use idem_benches::batch::Bench;
use idem_benches::row::Kind;
use idem_benches::subject::{BARE, HANDWRITTEN, IDEM, PARTS, Subject};
use idem_benches::{app, promises, sample};
use tokio::runtime::Builder;

/// What is said of a row by a subject that does not do what the row is about.
fn complaint(subject: Subject, kind: Kind) -> String {
    let measure = || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut bench = Bench::new(&runtime, subject, kind, 30)?;
        let requests = bench.requests(3);
        bench.run(&runtime, requests)
    };
    measure().err().map_or_else(|| "nothing".to_owned(), |failure| failure.to_string())
}

#[test]
fn a_row_that_measures_something_else_fails() {
    let unprotected = Subject { router: app::bare, ..IDEM };
    assert!(complaint(unprotected, Kind::Replay).contains("0 responses marked as replays instead of 3"));
    assert!(complaint(unprotected, Kind::Mismatch).contains("0 responses with the status of the row instead of 3"));
    let forgetful = Subject { marker: None, ..unprotected };
    assert!(complaint(forgetful, Kind::Replay).contains("3 executions instead of 0"));
    let lying = Subject { marker: Some("content-type"), ..IDEM };
    assert!(complaint(lying, Kind::First).contains("3 responses marked as replays instead of 0"));
}

#[test]
fn the_promises_of_idem_hold_and_those_of_the_floors_do_not() {
    let kept = promises::try_out(&IDEM).unwrap();
    assert_eq!((kept.concurrent, kept.hang_up, kept.large_kept, kept.leaks), (1, true, true, false));
    assert_eq!(kept.other_body, "refused with 422");
    let parts = promises::try_out(&PARTS).unwrap();
    assert_eq!((parts.concurrent, parts.hang_up, parts.leaks), (1, true, true));
    for broken in [BARE, HANDWRITTEN] {
        let broken = promises::try_out(&broken).unwrap();
        assert!(broken.concurrent > 1 && !broken.hang_up, "{broken:?}");
    }
}

/// The whole program, as `scripts/bench --quick` runs it.
#[test]
fn a_quick_run_has_every_table_and_every_row() {
    let output = Command::new(env!("CARGO_BIN_EXE_idem-benches")).arg("--quick").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stderr));
    let tables = ["machine", "in-process", "http-cpu", "promises", "scale", "memory"];
    for table in tables {
        assert!(said.contains(&format!("\n## {table}\n")), "no table {table} in:\n{said}");
    }
    for kind in Kind::ALL.iter().skip(1) {
        assert_eq!(said.matches(&format!("| idem | {kind} |")).count(), 2, "row {kind} in:\n{said}");
    }
}

#[test]
fn ratios_are_taken_round_by_round() {
    let row = |row, values: &[f64]| sample::Measurement {
        subject: "any",
        row,
        bytes: 30,
        values: sample::Series(values.to_vec()),
        ratios: sample::Series::default(),
    };
    let mut measured = [row("bare", &[1.0, 2.0]), row("first", &[3.0, 4.0])];
    sample::relate_to_bare(&mut measured);
    assert!((measured[1].ratios.0[0] - 3.0).abs() < 1e-9 && (measured[1].ratios.0[1] - 2.0).abs() < 1e-9);
}

//! Soaks a server with mixed traffic for a number of seconds, and fails if anything is left behind: `scripts/soak [seconds]`.

use std::process::ExitCode;
use std::time::Duration;

use idem_benches::load::soak::{PANICKED, soak};

/// What the allocator may still be about.
const GROWTH: f64 = 4.0 * 1_048_576.0;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(600);
    let findings = soak(Duration::from_secs(seconds));
    println!("{findings}");
    let faults =
        findings.faults(GROWTH, &["ran", "replayed 200", "replayed 500", "hung up", PANICKED, "409", "422", "503"]);
    faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

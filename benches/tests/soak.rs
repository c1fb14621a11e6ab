//! The short form of `scripts/soak`.

use std::time::Duration;

use idem_benches::load::soak::{PANICKED, soak};

#[test]
fn mixed_traffic_leaves_nothing_behind() {
    let findings = soak(Duration::from_secs(6));
    println!("{findings}");
    // In so short a time memory is still growing into its place, and a busy machine may not fill the store.
    let faults = findings.faults(32.0 * 1_048_576.0, &["ran", "replayed 200", "replayed 500", "hung up", PANICKED]);
    assert!(faults.is_empty(), "{faults:#?}\n{findings}");
}

//! The side-by-side benchmark, without peers; `benches/peers` has them.

use idem_benches::subject::{BARE, HANDWRITTEN, IDEM, PARTS};

fn main() -> std::process::ExitCode {
    idem_benches::cli::main(&[BARE, IDEM, PARTS, HANDWRITTEN])
}

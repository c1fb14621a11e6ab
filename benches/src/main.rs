//! The side-by-side benchmark, without peers; `benches/peers` has them.

use idem_benches::subject::{BARE, HANDWRITTEN, IDEM};

fn main() -> Result<(), idem_benches::Failure> {
    idem_benches::cli::main(&[BARE, IDEM, HANDWRITTEN])
}

//! The fixed program whose instructions callgrind counts: `counted <row> <bytes of the body> <requests>`.
//!
//! Warm-up, making the requests and the checks are outside of the function that is counted.

use idem_benches::Failure;
use idem_benches::batch::Bench;
use idem_benches::row::Kind;
use idem_benches::subject::{BARE, IDEM};

/// Enough that every lazy start has ended and every buffer has its size.
const WARM_UP: u64 = 2048;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [row, size, requests] = arguments.as_slice() else {
        return Err("usage: counted <row> <bytes of the body> <requests>".into());
    };
    let kind = Kind::parse(row).ok_or_else(|| format!("there is no row {row}"))?;
    let (size, requests) = (size.parse()?, requests.parse()?);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut bench = Bench::new(&runtime, if kind == Kind::Bare { BARE } else { IDEM }, kind, size)?;
    bench.warm_up(&runtime, WARM_UP)?;
    let requests = bench.requests(requests);
    bench.run(&runtime, requests)?;
    Ok(())
}

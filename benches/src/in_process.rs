//! Requests through `Router::call`, without a socket: the handler, the layers around it, and nothing else.

use std::time::Duration;

use crate::Failure;
use crate::batch::Bench;
use crate::floors;
use crate::sample::{Measurement, Series, relate_to_bare};
use crate::subject::Subject;

/// The sizes of request bodies, and how many requests make a batch of some milliseconds.
pub const SIZES: [(usize, u64); 4] = [(30, 2_000), (1024, 2_000), (64 * 1024, 200), (1024 * 1024, 20)];

/// Measures every row of every subject, in `rounds` rounds.
///
/// In each round the rows take turns, and each round starts with another row, so that whatever the machine does meanwhile
/// hits all of them alike.
///
/// # Errors
/// A response that is not what its row is about.
pub fn measure(subjects: &[Subject], rounds: usize, shrink: u64) -> Result<Vec<Measurement>, Failure> {
    let mut all = Vec::new();
    for (size, requests) in SIZES {
        eprintln!("in process, {size} bytes");
        all.extend(one_size(subjects, size, (requests / shrink).max(2), rounds)?);
    }
    relate_to_bare(&mut all);
    Ok(all)
}

fn one_size(subjects: &[Subject], size: usize, requests: u64, rounds: usize) -> Result<Vec<Measurement>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for subject in subjects {
        for kind in subject.kinds() {
            let mut bench = Bench::new(&runtime, *subject, kind, size)?;
            bench.warm_up(&runtime, requests)?;
            rows.push((Row::Request(bench), empty(subject.name, kind.name(), size)));
        }
    }
    for floor in floors::ALL {
        let name = floor.name();
        rows.push((Row::Floor(floor.ready(size)), empty("floor", name, size)));
    }
    let count = rows.len();
    for round in 0..rounds {
        for turn in 0..count {
            let (row, measured) = &mut rows[(round + turn) % count];
            let took = match row {
                Row::Request(bench) => {
                    let batch = bench.requests(requests);
                    bench.run(&runtime, batch)?
                }
                Row::Floor(floor) => floor.run(requests),
            };
            measured.values.0.push(per_request(took, requests));
        }
    }
    Ok(rows.into_iter().map(|(_, measured)| measured).collect())
}

enum Row {
    Request(Bench),
    Floor(floors::Ready),
}

fn empty(subject: &'static str, row: &'static str, bytes: usize) -> Measurement {
    Measurement { subject, row, bytes, values: Series::default(), ratios: Series::default() }
}

fn per_request(took: Duration, requests: u64) -> f64 {
    took.as_secs_f64() * 1e9 / requests as f64
}

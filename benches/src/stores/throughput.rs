//! First executions per second against the number of tasks that ask at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::runtime::Runtime;

use crate::Failure;
use crate::sample::Series;
use crate::stores::place::Place;
use crate::stores::subject::Load;

/// How many tasks there are at once. A `PostgresStore` has as many connections.
pub const TASKS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Beyond all numbers of the other part.
const FIRST: u64 = 1 << 40;

/// One cell of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Throughput {
    /// Whose numbers these are.
    pub place: &'static str,
    /// How many tasks asked at once.
    pub tasks: usize,
    /// First executions per second, one value per round.
    pub rate: Series,
}

/// Measures all places with all numbers of tasks, in rounds in which they take turns.
///
/// # Errors
/// A response that is not what the row is about.
pub fn measure(
    runtime: &Runtime,
    places: &[Place],
    tasks: &[usize],
    rounds: usize,
    time: Duration,
) -> Result<Vec<Throughput>, Failure> {
    let next = Arc::new(AtomicU64::new(FIRST));
    let mut cells = Vec::new();
    for place in places {
        for &tasks in tasks {
            cells.push((place, Throughput { place: place.name(), tasks, rate: Series::default() }));
        }
    }
    let count = cells.len();
    for round in 0..rounds {
        for turn in 0..count {
            let (place, cell) = &mut cells[(round + turn) % count];
            // Made for each, so that no more than these tasks' connections are open, and no more memory is in use.
            let store = runtime.block_on(place.store(cell.tasks))?;
            // All connections are made and all statements prepared before it counts.
            let before = next.load(Ordering::Relaxed);
            let load = |time| spawned(runtime, &*store, cell.tasks, time, &next);
            load(time / 10)?;
            let rate = load(time)?;
            if next.load(Ordering::Relaxed) - before < cell.tasks as u64 * 2 {
                return Err("fewer executions than tasks".into());
            }
            cell.rate.0.push(rate);
        }
    }
    Ok(cells.into_iter().map(|(_, cell)| cell).collect())
}

fn spawned(
    runtime: &Runtime,
    store: &dyn Load,
    tasks: usize,
    time: Duration,
    next: &Arc<AtomicU64>,
) -> Result<f64, Failure> {
    runtime.block_on(store.load(tasks, time, Arc::clone(next)))
}

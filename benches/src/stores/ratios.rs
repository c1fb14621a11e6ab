//! Each store beside the bare commands, one task and one connection: in rounds in which they take turns.

use std::ops::Range;
use std::time::Duration;

use idem_runtime::StorageKey;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::Failure;
use crate::sample::Series;
use crate::stores::place::{Comparison, Place};
use crate::stores::round_trips::RoundTrips;
use crate::stores::subject::{Subject, Work, key};

/// How many keys have a record before reading begins.
const RECORDED: u64 = 64;
/// In how many slices the rows take turns within a round, so that what else the machine does hits all of them alike.
const SLICES: u64 = 10;
/// How many keys the counting of round trips takes.
const COUNTED: u64 = 16;

/// A store beside one kind of bare commands.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Whose numbers these are.
    pub place: &'static str,
    /// What was done.
    pub work: &'static str,
    /// The bare commands.
    pub bare: &'static str,
    /// Nanoseconds per key of the store, one value per round.
    pub store_nanos: Series,
    /// The same of the bare commands.
    pub bare_nanos: Series,
    /// One over the other, round by round.
    pub ratios: Series,
    /// Round trips per key of the store, if there is a network.
    pub store_trips: Option<f64>,
    /// The same of the bare commands.
    pub bare_trips: Option<f64>,
}

/// Numbers that no key has had.
#[derive(Debug)]
pub struct Numbers(u64);

impl Default for Numbers {
    fn default() -> Self {
        Self(1)
    }
}

impl Numbers {
    /// The next keys, this many of them.
    pub fn take(&mut self, count: u64) -> Range<u64> {
        let from = self.0;
        self.0 += count;
        from..self.0
    }
}

/// One subject with what was measured of it.
struct Row {
    name: Option<&'static str>,
    subject: Box<dyn Subject>,
    recorded: Vec<StorageKey>,
    trips: [Option<f64>; 2],
    nanos: [Series; 2],
}

const WORKS: [Work; 2] = [Work::Execute, Work::Replay];

/// Measures one place; nothing if there are no bare commands.
///
/// # Errors
/// A response that is not what the row is about.
pub fn measure(
    runtime: &Runtime,
    place: &Place,
    numbers: &mut Numbers,
    rounds: usize,
    batch: u64,
) -> Result<Vec<Ratio>, Failure> {
    let Some(compared) = runtime.block_on(place.compared(place.port()))? else { return Ok(Vec::new()) };
    let mut rows = rows_of(compared);
    let counted = runtime.block_on(count(place, numbers))?;
    for (row, trips) in rows.iter_mut().zip(counted) {
        row.trips = trips;
    }
    for row in &mut rows {
        row.recorded = numbers.take(RECORDED).map(key).collect();
        runtime.block_on(row.subject.batch(Work::Execute, &row.recorded))?;
    }
    let turns = rows.len() * WORKS.len();
    let slice = batch.div_ceil(SLICES);
    for round in 0..=rounds {
        let mut took = vec![Duration::ZERO; turns];
        for turn in 0..turns * usize::try_from(SLICES)? {
            let at = (round + turn) % turns;
            let (row, work) = (&mut rows[at / WORKS.len()], WORKS[at % WORKS.len()]);
            let keys: Vec<StorageKey> = match work {
                Work::Execute => numbers.take(slice).map(key).collect(),
                Work::Replay => row.recorded.iter().copied().cycle().take(usize::try_from(slice)?).collect(),
            };
            took[at] += runtime.block_on(row.subject.batch(work, &keys))?;
        }
        // The first round warms up.
        if round > 0 {
            for (at, took) in took.into_iter().enumerate() {
                let nanos = took.as_secs_f64() * 1e9 / (slice * SLICES) as f64;
                rows[at / WORKS.len()].nanos[at % WORKS.len()].0.push(nanos);
            }
        }
    }
    Ok(related(place, &rows))
}

/// The store first.
fn rows_of(compared: Comparison) -> Vec<Row> {
    let store = (None, compared.store);
    let bare = compared.bare.into_iter().map(|(name, subject)| (Some(name), subject));
    let row = |(name, subject)| Row {
        name,
        subject,
        recorded: Vec::new(),
        trips: [None, None],
        nanos: [Series::default(), Series::default()],
    };
    std::iter::once(store).chain(bare).map(row).collect()
}

/// The round trips per key of each row, for each kind of work.
async fn count(place: &Place, numbers: &mut Numbers) -> Result<Vec<[Option<f64>; 2]>, Failure> {
    let Some(port) = place.port() else { return Ok(Vec::new()) };
    let proxy = RoundTrips::to(port).await?;
    let Some(compared) = place.compared(Some(proxy.port())).await? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for mut row in rows_of(compared) {
        // Statements are prepared when they are first used, which is not what a step costs.
        let warm: Vec<StorageKey> = numbers.take(1).map(key).collect();
        for work in WORKS {
            row.subject.batch(work, &warm).await?;
        }
        let keys: Vec<StorageKey> = numbers.take(COUNTED).map(key).collect();
        for (work, trips) in WORKS.into_iter().zip(&mut row.trips) {
            let before = proxy.count();
            row.subject.batch(work, &keys).await?;
            *trips = Some((proxy.count() - before) as f64 / COUNTED as f64);
        }
        all.push(row.trips);
    }
    Ok(all)
}

fn related(place: &Place, rows: &[Row]) -> Vec<Ratio> {
    let Some((store, bare)) = rows.split_first() else { return Vec::new() };
    let mut ratios = Vec::new();
    for (at, work) in WORKS.into_iter().enumerate() {
        for row in bare {
            ratios.push(Ratio {
                place: place.name(),
                work: work.name(),
                bare: row.name.unwrap_or_default(),
                store_nanos: store.nanos[at].clone(),
                bare_nanos: row.nanos[at].clone(),
                ratios: store.nanos[at].over(&row.nanos[at]),
                store_trips: store.trips[at],
                bare_trips: row.trips[at],
            });
        }
    }
    ratios
}

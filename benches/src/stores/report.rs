//! The results as tables, in the words of `BENCHMARKS.md`.

use std::fmt::Write;

use serde::Serialize;

use crate::report::time;
use crate::sample::Series;
use crate::stores::ratios::Ratio;
use crate::stores::throughput::Throughput;
use crate::stores::transactions::{self, TransactionRow};

/// Everything that was measured in one run.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// What it ran on, and when.
    pub machine: String,
    /// Whether it was a quick run, whose numbers say nothing.
    pub quick: bool,
    /// How many rounds there were.
    pub rounds: usize,
    /// The stores beside bare commands.
    pub ratios: Vec<Ratio>,
    /// First executions per second.
    pub throughput: Vec<Throughput>,
    /// `Tx` beside a bare transaction.
    pub transactions: Vec<TransactionRow>,
}

impl Results {
    /// The tables that were measured: name and Markdown.
    pub fn tables(&self) -> Vec<(&'static str, String)> {
        let mut tables = vec![("stores-machine", self.machine.clone())];
        if !self.ratios.is_empty() {
            tables.push(("stores-ratios", ratios(&self.ratios)));
        }
        if !self.throughput.is_empty() {
            tables.push(("stores-throughput", throughput(&self.throughput)));
        }
        if !self.transactions.is_empty() {
            tables.push(("stores-transactions", transactions::table(&self.transactions, spread)));
        }
        tables
    }
}

fn ratios(ratios: &[Ratio]) -> String {
    let mut table = String::from(
        "| store | | bare | bare takes | the store takes | store over bare | round trips, bare and store |\n\
         |---|---|---|---|---|---|---|",
    );
    for one in ratios {
        let Ratio { place, work, bare, bare_nanos, store_nanos, ratios, .. } = one;
        let bare = match *work {
            "replay" if bare.starts_with("EVALSHA") => "EVALSHA",
            "replay" if bare.starts_with("SET") => "GET",
            "replay" => "SELECT",
            _ => bare,
        };
        let trips = one.bare_trips.zip(one.store_trips);
        let trips = trips.map_or_else(|| "no network".to_owned(), |(bare, store)| format!("{bare:.0} and {store:.0}"));
        let _ = write!(
            table,
            "\n| {place} | {work} | {bare} | {} | {} | **{:.2}** ({:.2}..{:.2}) | {trips} |",
            spread(bare_nanos),
            spread(store_nanos),
            ratios.median(),
            ratios.min(),
            ratios.max(),
        );
    }
    table
}

fn spread(nanos: &Series) -> String {
    format!("{} ({}..{})", time(nanos.median()), time(nanos.min()), time(nanos.max()))
}

fn throughput(cells: &[Throughput]) -> String {
    let mut tasks: Vec<usize> = cells.iter().map(|cell| cell.tasks).collect();
    tasks.sort_unstable();
    tasks.dedup();
    let mut places: Vec<&str> = cells.iter().map(|cell| cell.place).collect();
    places.dedup();
    let mut table = String::from("| tasks |");
    for tasks in &tasks {
        let _ = write!(table, " {tasks} |");
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(tasks.len()));
    for place in places {
        let _ = write!(table, "\n| {place} |");
        for cell in cells.iter().filter(|cell| cell.place == place) {
            let rate = &cell.rate;
            let _ = write!(table, " **{:.0}** ({:.0}..{:.0}) |", rate.median(), rate.min(), rate.max());
        }
    }
    table
}

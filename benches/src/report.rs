//! The results as tables, in the words of `BENCHMARKS.md`.

use std::collections::HashSet;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::http::OverHttp;
use crate::promises::Promises;
use crate::sample::Measurement;
use crate::scale::ScaleMeasurement;

/// Bytes per key.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Memory {
    /// How many keys were in the store.
    pub keys: u64,
    /// A moka cache from hash to record.
    pub floor: f64,
    /// The store, with a record for each key.
    pub completed: f64,
    /// What the store charges itself for it.
    pub accounted: f64,
    /// The store, with a claim for each key.
    pub in_flight: f64,
}

/// Everything that was measured in one run.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// What it ran on, and when.
    pub machine: String,
    /// Whether it was a quick run, whose numbers say nothing.
    pub quick: bool,
    /// How many rounds there were.
    pub rounds: usize,
    /// Nanoseconds per request through `Router::call`.
    pub in_process: Vec<Measurement>,
    /// Over HTTP/1.1 on loopback.
    pub http: OverHttp,
    /// Which promises hold.
    pub promises: Vec<Promises>,
    /// The store with few keys and with many.
    pub scale: Vec<ScaleMeasurement>,
    /// Bytes per key, with few keys and with as many as the store is made for.
    pub memory: Vec<Memory>,
}

impl Results {
    /// The tables that were measured: name and Markdown.
    pub fn tables(&self) -> Vec<(&'static str, String)> {
        let mut tables = vec![("machine", self.machine.clone())];
        if !self.in_process.is_empty() {
            let mut table = by_size(&self.in_process, time);
            budget_of_large_bodies(&self.in_process, &mut table);
            tables.push(("in-process", table));
        }
        if !self.http.cpu.is_empty() {
            tables.push(("http-cpu", by_size(&self.http.cpu, time)));
        }
        if !self.promises.is_empty() {
            tables.push(("promises", promises(&self.promises)));
        }
        if !self.scale.is_empty() {
            tables.push(("scale", scale(&self.scale)));
        }
        if !self.memory.is_empty() {
            tables.push(("memory", bytes_per_key(&self.memory)));
        }
        tables
    }
}

/// Nanoseconds, with three digits.
pub fn time(nanos: f64) -> String {
    match nanos {
        nanos if nanos >= 1e6 => format!("{:.2} ms", nanos / 1e6),
        nanos if nanos >= 1e4 => format!("{:.1} µs", nanos / 1e3),
        nanos if nanos >= 1e3 => format!("{:.2} µs", nanos / 1e3),
        nanos => format!("{nanos:.0} ns"),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// A row for each subject and kind, a column for each size: value, **multiple of bare**, and its spread.
fn by_size(measured: &[Measurement], show: impl Fn(f64) -> String) -> String {
    let mut sizes: Vec<usize> = measured.iter().map(|one| one.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut table = String::from("| | |");
    for bytes in &sizes {
        let _ = write!(table, " {} |", size(*bytes));
    }
    table.push_str("\n|---|---|");
    table.push_str(&"---|".repeat(sizes.len()));
    let mut seen = HashSet::new();
    for Measurement { subject, row, .. } in measured.iter().filter(|one| seen.insert((one.subject, one.row))) {
        let _ = write!(table, "\n| {subject} | {row} |");
        for bytes in &sizes {
            let cell = measured.iter().find(|one| (one.subject, one.row, one.bytes) == (*subject, *row, *bytes));
            let cell = cell.map_or_else(|| "–".to_owned(), |one| cell_of(one, &show));
            let _ = write!(table, " {cell} |");
        }
    }
    table
}

fn cell_of(one: &Measurement, show: &impl Fn(f64) -> String) -> String {
    if one.values.0.is_empty() {
        return "closes the connection".to_owned();
    }
    let value = show(one.values.median());
    if one.row == "bare" {
        return format!("{value} ({}..{})", show(one.values.min()), show(one.values.max()));
    }
    let ratios = &one.ratios;
    format!("{value}, **{:.2}** ({:.2}..{:.2})", ratios.median(), ratios.min(), ratios.max())
}

/// What a large body may cost by our own budget: the bare handler, and 1.1 times SHA-256 over the body.
fn budget_of_large_bodies(measured: &[Measurement], table: &mut String) {
    let find = |row: &str, bytes: usize| measured.iter().find(|one| one.row == row && one.bytes == bytes);
    let mut sizes: Vec<usize> = measured.iter().map(|one| one.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    table.push_str("\n| floor | bare + 1.1 × sha2 |");
    for bytes in sizes {
        let cell = find("bare", bytes).zip(find("sha2 over the body", bytes)).map(|(bare, sha)| {
            let (bare, sha) = (bare.values.median(), sha.values.median());
            let floor = bare + 1.1 * sha;
            format!("{}, **{:.2}**", time(floor), floor / bare)
        });
        let _ = write!(table, " {} |", cell.unwrap_or_else(|| "–".to_owned()));
    }
}

fn promises(promises: &[Promises]) -> String {
    let mut table = String::from(
        "| | 8 equal requests at once: runs | same key, other body | caller hangs up | response of 8 MiB | another caller, same key |\n\
         |---|---|---|---|---|---|",
    );
    let mark = |kept: bool, text: &str| if kept { text.to_owned() } else { format!("**broken:** {text}") };
    for one in promises {
        let _ = write!(
            table,
            "\n| {} | {} | {} | {} | {} | {} |",
            one.subject,
            mark(one.concurrent == 1, &one.concurrent.to_string()),
            mark(one.other_body.starts_with("refused"), &one.other_body),
            mark(one.hang_up, if one.hang_up { "runs to the end" } else { "stops half-way" }),
            mark(one.large_kept, &one.large),
            mark(!one.leaks, if one.leaks { "gets the first one's response" } else { "does not get it" }),
        );
    }
    table
}

fn scale(cells: &[ScaleMeasurement]) -> String {
    let mut keys: Vec<u64> = cells.iter().map(|cell| cell.live_keys).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut table = String::from("| | threads |");
    for keys in &keys {
        let _ = write!(table, " {keys} keys |");
    }
    table.push_str(" most over fewest |\n|---|---|---|");
    table.push_str(&"---|".repeat(keys.len()));
    let mut seen = HashSet::new();
    for ScaleMeasurement { work, threads, .. } in cells.iter().filter(|cell| seen.insert((cell.work, cell.threads))) {
        let _ = write!(table, "\n| {work} | {threads} |");
        let row: Vec<&ScaleMeasurement> =
            cells.iter().filter(|cell| (cell.work, cell.threads) == (*work, *threads)).collect();
        for cell in &row {
            let nanos = &cell.nanos;
            let _ = write!(table, " {} ({}..{}) |", time(nanos.median()), time(nanos.min()), time(nanos.max()));
        }
        let growth = row.first().zip(row.last()).map(|(few, many)| many.nanos.over(&few.nanos).median());
        let _ = write!(table, " **{:.2}** |", growth.unwrap_or(f64::NAN));
    }
    table
}

type Bytes = fn(&Memory) -> f64;

fn bytes_per_key(stores: &[Memory]) -> String {
    let mut table = String::from("| bytes per key |");
    for Memory { keys, .. } in stores {
        let _ = write!(table, " of {keys} | of the floor |");
    }
    table.push_str("\n|---|");
    table.push_str(&"---|---|".repeat(stores.len()));
    let rows: [(&str, Bytes); 4] = [
        ("floor: moka alone, hash of the key to a record", |memory| memory.floor),
        ("completed key, with a record", |memory| memory.completed),
        ("what the store charges itself for it", |memory| memory.accounted),
        ("claim", |memory| memory.in_flight),
    ];
    for (name, bytes) in rows {
        let _ = write!(table, "\n| {name} |");
        for memory in stores {
            let _ = write!(table, " {:.0} | **{:.2}** |", bytes(memory), bytes(memory) / memory.floor);
        }
    }
    table
}

//! Requests over HTTP/1.1 on loopback: a server process, a process that makes the load, and this one, which measures the
//! processor time of the server. If there are two processors, server and load have one each.

mod client;
mod load;
mod processes;
mod server;

use serde::Serialize;

pub use load::run as run_load;
pub(crate) use processes::can_pin;
pub use server::run as run_server;

use self::load::{Job, Report};
use self::processes::{Load, Server};
use crate::Failure;
use crate::batch::expect;
use crate::row::{Bodies, Kind};
use crate::sample::{Measurement, Series, relate_to_bare};
use crate::subject::Subject;

/// The sizes of request bodies, how many requests make a batch of some ten milliseconds or more, and over how many
/// connections they go.
pub const SIZES: [(usize, u64, usize); 4] =
    [(30, 4_000, 32), (1024, 4_000, 32), (64 * 1024, 480, 16), (1024 * 1024, 48, 8)];

/// What was measured over HTTP, row by row in the same order.
#[derive(Debug, Default, Serialize)]
pub struct OverHttp {
    /// Nanoseconds of the server's processor time per request.
    pub cpu: Vec<Measurement>,
    /// Requests per second.
    pub rate: Vec<Measurement>,
    /// The 99th percentile of the time a request took, in microseconds.
    pub p99: Vec<Measurement>,
}

/// Measures every row of every subject, in `rounds` rounds in which the rows take turns.
///
/// # Errors
/// A response that is not what its row is about, or a process that failed.
pub fn measure(subjects: &[Subject], rounds: usize, shrink: u64) -> Result<OverHttp, Failure> {
    let mut all = OverHttp::default();
    let mut load = Load::start()?;
    for (bytes, requests, connections) in SIZES {
        eprintln!("over HTTP, {bytes} bytes");
        let connections = if shrink > 1 { 2 } else { connections };
        let requests = (requests / shrink).max(connections as u64);
        let mut rows = start(subjects, bytes, connections, &mut load)?;
        let count = rows.len();
        // The first round warms up, and is not kept.
        for round in 0..=rounds {
            for turn in 0..count {
                rows[(round + turn) % count].turn(&mut load, requests, round > 0)?;
            }
        }
        for row in rows {
            all.cpu.push(row.cpu);
            all.rate.push(row.rate);
            all.p99.push(row.p99);
        }
    }
    relate_to_bare(&mut all.cpu);
    relate_to_bare(&mut all.rate);
    relate_to_bare(&mut all.p99);
    Ok(all)
}

/// Starts its own server for each row, and brings it into the state that the row needs.
fn start(subjects: &[Subject], bytes: usize, connections: usize, load: &mut Load) -> Result<Vec<Row>, Failure> {
    let used = Bodies::new(bytes).used_keys;
    let mut rows = Vec::new();
    for subject in subjects {
        for kind in subject.kinds() {
            let empty = Measurement {
                subject: subject.name,
                row: kind.name(),
                bytes,
                values: Series::default(),
                ratios: Series::default(),
            };
            let server = Server::start(subject, kind)?;
            let row = Row {
                subject: *subject,
                kind,
                server,
                connections,
                next: 0,
                closes: false,
                cpu: empty.clone(),
                rate: empty.clone(),
                p99: empty,
            };
            if kind.needs_records() {
                let report = load.run(&row.job(Job::PREPARE, used))?;
                expect(subject, kind, "first executions for the records", report.created, used)?;
                expect(subject, kind, "executions for the records", row.server.executions()?, used)?;
            } else if kind == Kind::InFlight {
                load.run(&row.job(Job::STICK, 1))?;
                expect(subject, kind, "executions in flight", row.server.wait_for_execution()?, 1)?;
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

struct Row {
    subject: Subject,
    kind: Kind,
    server: Server,
    connections: usize,
    next: u64,
    closes: bool,
    cpu: Measurement,
    rate: Measurement,
    p99: Measurement,
}

impl Row {
    fn job(&self, what: &str, requests: u64) -> Job {
        Job {
            what: what.to_owned(),
            port: self.server.port,
            subject: self.subject.name.to_owned(),
            row: self.kind.name().to_owned(),
            bytes: self.cpu.bytes,
            first: self.next,
            requests,
            connections: self.connections,
        }
    }

    fn turn(&mut self, load: &mut Load, requests: u64, keep: bool) -> Result<(), Failure> {
        let job = self.job(Job::MEASURE, requests);
        self.next += requests;
        let executed = self.server.executions()?;
        let cpu = self.server.processor_time()?;
        let report = load.run(&job)?;
        let cpu = self.server.processor_time()?.saturating_sub(cpu);
        let executed = self.server.executions()? - executed;
        // A response without having read a large body makes hyper close the connection under the client that is still
        // sending it. Then there is nothing to time.
        self.closes |= report.broken > 0;
        if self.closes && !self.subject.is_ours() {
            return Ok(());
        }
        self.check(&report, requests, executed)?;
        if keep {
            self.cpu.values.0.push(cpu.as_secs_f64() * 1e9 / requests as f64);
            self.rate.values.0.push(requests as f64 / (report.nanos as f64 / 1e9));
            self.p99.values.0.push(report.p99_nanos as f64 / 1e3);
        }
        Ok(())
    }

    fn check(&self, report: &Report, requests: u64, executed: u64) -> Result<(), Failure> {
        let (subject, kind) = (&self.subject, self.kind);
        expect(subject, kind, "responses with the status of the row", report.as_expected, requests)?;
        expect(
            subject,
            kind,
            "responses marked as replays",
            report.marked,
            if subject.marks(kind) { requests } else { 0 },
        )?;
        expect(subject, kind, "executions", executed, if kind.executes() { requests } else { 0 })
    }
}

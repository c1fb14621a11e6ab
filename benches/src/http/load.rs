//! The subcommand `load`: reads jobs from its standard input, one a line, and writes a report for each.

use std::collections::HashMap;
use std::io::BufRead;
use std::time::Instant;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::client::{Connection, Response, encode};
use crate::Failure;
use crate::row::{Bodies, Kind, headers};
use crate::subject::Subject;

/// A batch of requests.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Job {
    pub(super) what: String,
    pub(super) port: u16,
    pub(super) subject: String,
    pub(super) row: String,
    pub(super) bytes: usize,
    pub(super) first: u64,
    pub(super) requests: u64,
    pub(super) connections: usize,
}

impl Job {
    /// Requests whose responses are timed.
    pub(super) const MEASURE: &str = "measure";
    /// Requests that make the records for a row.
    pub(super) const PREPARE: &str = "prepare";
    /// One request whose response never comes.
    pub(super) const STICK: &str = "stick";
}

/// What came of it.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Report {
    pub(super) nanos: u64,
    pub(super) p99_nanos: u64,
    pub(super) created: u64,
    pub(super) as_expected: u64,
    pub(super) marked: u64,
    /// Requests that got no response, since the server had closed the connection.
    pub(super) broken: u64,
}

/// Does the jobs until there are no more.
///
/// # Errors
/// If a job cannot be understood, or a server closes a connection too early.
pub fn run(subjects: &[Subject]) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut load = Load::default();
    for line in std::io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?)?;
        let subject = subjects.iter().find(|subject| subject.name == job.subject).ok_or("an unknown subject")?;
        let report = runtime.block_on(load.does(&job, subject))?;
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

#[derive(Default)]
struct Load {
    /// Kept from batch to batch, so that connecting is not measured.
    connections: HashMap<u16, Vec<Connection>>,
    stuck: Vec<Connection>,
}

impl Load {
    async fn does(&mut self, job: &Job, subject: &Subject) -> Result<Report, Failure> {
        let kind = Kind::parse(&job.row).ok_or("an unknown row")?;
        // A replay's request is, number for number, the request that made its record.
        let sent = if job.what == Job::PREPARE { Kind::Replay } else { kind };
        let bodies = Bodies::new(job.bytes);
        let request = |number| {
            let headers = headers(subject, sent, number, &bodies);
            encode(&headers, &bodies.of(subject, sent, number))
        };
        if job.what == Job::STICK {
            let mut connection = Connection::open(job.port).await?;
            connection.write(&request(0)).await?;
            self.stuck.push(connection);
            return Ok(Report::default());
        }
        let connections = self.connections.entry(job.port).or_default();
        while connections.len() < job.connections {
            connections.push(Connection::open(job.port).await?);
        }
        let mut shares = vec![Vec::new(); job.connections];
        for number in 0..job.requests {
            let turn = usize::try_from(number)? % job.connections;
            shares[turn].push(request(job.first + number));
        }
        let mut sending = tokio::task::JoinSet::new();
        let started = Instant::now();
        for (mut connection, share) in connections.drain(..).zip(shares) {
            let (marker, port) = (subject.marker, job.port);
            sending.spawn(async move {
                let mut responses = Vec::with_capacity(share.len());
                for request in share {
                    let sent = Instant::now();
                    match connection.exchange(&request, marker).await {
                        Ok(response) => responses.push((response, sent.elapsed())),
                        // Its report tells how often.
                        Err(_) => connection = Connection::open(port).await?,
                    }
                }
                Ok::<_, Failure>((connection, responses))
            });
        }
        let mut responses = Vec::new();
        while let Some(done) = sending.join_next().await {
            let (connection, some) = done??;
            connections.push(connection);
            responses.extend(some);
        }
        let nanos = started.elapsed();
        let mut times: Vec<_> = responses.iter().map(|(_, time)| *time).collect();
        times.sort_unstable();
        let count = |wanted: &dyn Fn(&Response) -> bool| {
            responses.iter().filter(|(response, _)| wanted(response)).count() as u64
        };
        let expected = subject.status(kind).map_or(0, |status| status.as_u16());
        Ok(Report {
            nanos: u64::try_from(nanos.as_nanos())?,
            p99_nanos: times.get(times.len() * 99 / 100).map_or(Ok(0), |time| u64::try_from(time.as_nanos()))?,
            created: count(&|response| response.status == StatusCode::CREATED.as_u16()),
            as_expected: count(&|response| response.status == expected),
            marked: count(&|response| response.marked),
            broken: job.requests - responses.len() as u64,
        })
    }
}

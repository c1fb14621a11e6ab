//! A router brought into the state a row needs, and batches of requests sent through it in process.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower::Service;

use crate::Failure;
use crate::app::{Pace, Shop};
use crate::row::{Bodies, Kind, request};
use crate::subject::Subject;

/// A router in the state that a row needs.
#[derive(Debug)]
pub struct Bench {
    subject: Subject,
    kind: Kind,
    bodies: Bodies,
    shop: Shop,
    router: Router,
    next: u64,
}

impl Bench {
    /// Makes the router and brings it into the state.
    ///
    /// # Errors
    /// A response that is not what the row is about.
    pub fn new(runtime: &Runtime, subject: Subject, kind: Kind, size: usize) -> Result<Self, Failure> {
        let shop = Shop::new(if kind == Kind::InFlight { Pace::Stuck } else { Pace::Prompt });
        let router = {
            let _within = runtime.enter();
            (subject.router)(&shop)
        };
        let mut bench = Self { subject, kind, bodies: Bodies::new(size), shop, router, next: 0 };
        let used = bench.bodies.used_keys;
        if kind.needs_records() {
            // A replay's request is, number for number, the request that made its record.
            let first = (0..used).map(|number| request(&subject, Kind::Replay, number, &bench.bodies)).collect();
            let expected = Expected { status: StatusCode::CREATED, marker: subject.marker };
            let tally = runtime.block_on(send_all(&mut bench.router, first, expected))?;
            bench.expect("first executions for the records", tally.as_expected, used)?;
            bench.expect("executions for the records", bench.shop.executions(), used)?;
        }
        if kind == Kind::InFlight {
            let mut router = bench.router.clone();
            let first = request(&subject, kind, 0, &bench.bodies);
            let first = runtime.spawn(async move { send(&mut router, first).await });
            runtime.block_on(async {
                while bench.shop.executions() == 0 && !first.is_finished() {
                    tokio::task::yield_now().await;
                }
            });
            bench.expect("executions in flight", bench.shop.executions(), 1)?;
        }
        Ok(bench)
    }

    /// The next `count` requests of this row.
    pub fn requests(&mut self, count: u64) -> Vec<Request<Body>> {
        let first = self.next;
        self.next += count;
        (first..self.next).map(|number| request(&self.subject, self.kind, number, &self.bodies)).collect()
    }

    /// Sends requests of this row that are neither timed nor counted.
    ///
    /// # Errors
    /// A response that is not what the row is about.
    pub fn warm_up(&mut self, runtime: &Runtime, count: u64) -> Result<(), Failure> {
        let requests = self.requests(count);
        self.checked(count, |router, what| runtime.block_on(send_all(router, requests, what)))
    }

    /// Sends `requests` one after the other, and says how long that took. Making them and the checks of the counts are not
    /// in it; looking at the status and for the marker is, in every row.
    ///
    /// # Errors
    /// A response that is not what the row is about.
    pub fn run(&mut self, runtime: &Runtime, requests: Vec<Request<Body>>) -> Result<Duration, Failure> {
        let mut took = Duration::ZERO;
        self.checked(requests.len() as u64, |router, what| {
            let started = Instant::now();
            let tally = run_counted(runtime, router, requests, what);
            took = started.elapsed();
            tally
        })?;
        Ok(took)
    }

    /// Holds what `send` reports against what the row is about.
    fn checked<F>(&mut self, sent: u64, send: F) -> Result<(), Failure>
    where
        F: FnOnce(&mut Router, Expected) -> Result<Tally, Failure>,
    {
        let before = self.shop.executions();
        let status = self.subject.status(self.kind).ok_or("the subject has no such row")?;
        let tally = send(&mut self.router, Expected { status, marker: self.subject.marker })?;
        self.expect("responses with the status of the row", tally.as_expected, sent)?;
        self.expect("responses marked as replays", tally.marked, if self.subject.marks(self.kind) { sent } else { 0 })?;
        self.expect("executions", self.shop.executions() - before, if self.kind.executes() { sent } else { 0 })
    }

    fn expect(&self, what: &str, got: u64, wanted: u64) -> Result<(), Failure> {
        expect(&self.subject, self.kind, what, got, wanted)
    }
}

/// # Errors
/// If `got` is not `wanted`: the run measured something else than its row says.
pub(crate) fn expect(subject: &Subject, kind: Kind, what: &str, got: u64, wanted: u64) -> Result<(), Failure> {
    if got == wanted {
        return Ok(());
    }
    let name = subject.name;
    Err(format!("{name}, row {kind}: {got} {what} instead of {wanted}, so it measured something else").into())
}

/// What is looked for in every response.
#[derive(Clone, Copy, Debug)]
struct Expected {
    status: StatusCode,
    marker: Option<&'static str>,
}

/// What the responses of a batch were.
#[derive(Debug, Default)]
struct Tally {
    as_expected: u64,
    marked: u64,
}

/// The part that is timed, and that callgrind counts: its name is in `scripts/bench-instructions`.
#[inline(never)]
fn run_counted(
    runtime: &Runtime,
    router: &mut Router,
    requests: Vec<Request<Body>>,
    expected: Expected,
) -> Result<Tally, Failure> {
    runtime.block_on(send_all(router, requests, expected))
}

async fn send_all(router: &mut Router, requests: Vec<Request<Body>>, expected: Expected) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    for request in requests {
        let response = send(router, request).await?;
        tally.as_expected += u64::from(response.status() == expected.status);
        tally.marked += u64::from(expected.marker.is_some_and(|marker| response.headers().contains_key(marker)));
    }
    Ok(tally)
}

/// Sends one request, and reads its response to the end, as a server does that writes it out. Returns the head and the
/// length.
pub(crate) async fn send(router: &mut Router, request: Request<Body>) -> Result<Response<usize>, Failure> {
    let (head, mut body) = router.call(request).await?.into_parts();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok(Response::from_parts(head, length))
}

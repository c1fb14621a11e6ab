//! A router brought into the state a row needs, and batches of requests sent through it in process.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower::Service;

use crate::Failure;
use crate::app::Shop;
use crate::row::{Bodies, Kind, OTHER_HEADER, request};

/// How many keys the replays and the mismatches go round.
pub const KEYS: u64 = 256;

/// Something that can be put around the handler, and how its answers look.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The name in tables.
    pub name: &'static str,
    /// Makes the router.
    pub router: fn(&Shop) -> Router,
    /// The header that carries the key.
    pub header: &'static str,
    /// The header of a replay, where there is one.
    pub marker: Option<&'static str>,
}

/// The handler alone.
pub const BARE: Subject =
    Subject { name: "bare", router: crate::app::bare, header: "idempotency-key", marker: Some("idempotent-replayed") };

/// The handler with `#[idempotent]`.
pub const IDEM: Subject = Subject { name: "idem", router: crate::app::idem, ..BARE };

/// A router in the state that a row needs.
#[derive(Debug)]
pub struct Bench {
    subject: Subject,
    kind: Kind,
    bodies: Bodies,
    shop: Shop,
    router: Router,
    next_key: u64,
}

impl Bench {
    /// Makes the router and brings it into the state.
    ///
    /// # Errors
    /// An answer that is not what the row is about.
    pub fn new(runtime: &Runtime, subject: Subject, kind: Kind, size: usize) -> Result<Self, Failure> {
        let shop = if kind == Kind::InFlight { Shop::stuck() } else { Shop::new() };
        let router = (subject.router)(&shop);
        let mut bench = Self { subject, kind, bodies: Bodies::new(size), shop, router, next_key: KEYS };
        match kind {
            Kind::Bare | Kind::Unprotected | Kind::First => {}
            Kind::Replay | Kind::Mismatch => {
                for key in 0..KEYS {
                    let request = request(subject.header, key, &bench.bodies.usual);
                    let status = runtime.block_on(send(&mut bench.router, request))?.0.status();
                    expect(subject, kind, "status of the first execution", &status, &Kind::First.status())?;
                }
            }
            Kind::InFlight => {
                let mut router = bench.router.clone();
                let first = request(subject.header, 0, &bench.bodies.usual);
                let first = runtime.spawn(async move { send(&mut router, first).await });
                runtime.block_on(async {
                    while bench.shop.executions() == 0 && !first.is_finished() {
                        tokio::task::yield_now().await;
                    }
                });
                expect(subject, kind, "executions in flight", &bench.shop.executions(), &1)?;
            }
        }
        Ok(bench)
    }

    /// The next `count` requests of this row.
    pub fn requests(&mut self, count: u64) -> Vec<Request<Body>> {
        (0..count).map(|_| self.request()).collect()
    }

    fn request(&mut self) -> Request<Body> {
        self.next_key += 1;
        let (header, key, body) = match self.kind {
            Kind::Bare | Kind::First => (self.subject.header, self.next_key, &self.bodies.usual),
            Kind::Unprotected => (OTHER_HEADER, self.next_key, &self.bodies.usual),
            Kind::Replay => (self.subject.header, self.next_key % KEYS, &self.bodies.usual),
            Kind::InFlight => (self.subject.header, 0, &self.bodies.usual),
            Kind::Mismatch => (self.subject.header, self.next_key % KEYS, &self.bodies.other),
        };
        request(header, key, body)
    }

    /// Sends requests of this row that are neither timed nor counted.
    ///
    /// # Errors
    /// An answer that is not what the row is about.
    pub fn warm_up(&mut self, runtime: &Runtime, count: u64) -> Result<(), Failure> {
        let requests = self.requests(count);
        self.checked(count, |router, what| runtime.block_on(send_all(router, requests, what)))
    }

    /// Sends `requests` one after the other, and says how long that took. Making them and the checks of the counts are not
    /// in it; looking at the status and for the marker is, in every row.
    ///
    /// # Errors
    /// An answer that is not what the row is about.
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
        let (subject, kind) = (self.subject, self.kind);
        let before = self.shop.executions();
        let expected = Expected { status: kind.status(), marker: subject.marker };
        let tally = send(&mut self.router, expected)?;
        expect(subject, kind, "answers with the status of the row", &tally.as_expected, &sent)?;
        let replays = if kind == Kind::Replay && subject.marker.is_some() { sent } else { 0 };
        expect(subject, kind, "answers marked as replays", &tally.marked, &replays)?;
        let executions = if kind.executes() { sent } else { 0 };
        expect(subject, kind, "executions", &(self.shop.executions() - before), &executions)
    }
}

/// What is looked for in every answer.
#[derive(Clone, Copy, Debug)]
struct Expected {
    status: StatusCode,
    marker: Option<&'static str>,
}

/// What the answers of a batch were.
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
        let (response, _) = send(router, request).await?;
        tally.as_expected += u64::from(response.status() == expected.status);
        tally.marked += u64::from(expected.marker.is_some_and(|marker| response.headers().contains_key(marker)));
    }
    Ok(tally)
}

/// Sends one request, and reads its answer to the end, as a server does to write it out: the head, and how long the body is.
async fn send(router: &mut Router, request: Request<Body>) -> Result<(Response<()>, usize), Failure> {
    let (head, mut body) = router.call(request).await?.into_parts();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok((Response::from_parts(head, ()), length))
}

fn expect<T: PartialEq + std::fmt::Display>(
    subject: Subject,
    kind: Kind,
    what: &str,
    got: &T,
    wanted: &T,
) -> Result<(), Failure> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{}, {kind}: {what}: {got}, but {wanted} expected; this run measured something else", subject.name)
        .into())
}

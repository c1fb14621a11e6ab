//! Responses that are large, endless or broken, and times at the edges: 54 to 58, 76, 86 and 88.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{any, post};
use futures_util::stream;
use idem_axum::{Clock, Idempotency, MemoryStore, Policy, Timestamp, idempotent};
use idem_tests::{Ask, Connection, H2, Probe, Server, Setup, feed, once, post as send, responding};

use crate::app::{assert_alive, assert_small, routes};
use crate::{CodedInput, coded};

pub const INPUTS: &[CodedInput] = coded![
    54 => as_large_as_allowed,
    55 => a_byte_larger,
    56 => without_an_end,
    57 => that_breaks_in_the_middle,
    58 => with_more_headers_than_a_map_holds,
    58 => with_as_many_headers_as_a_map_holds,
    76 => over_http_1_and_then_http_2,
    86 => times_to_live_at_the_edges,
    88 => a_clock_that_is_set,
];

fn ask() -> Ask {
    send("/").key("k")
}

async fn served(setup: &mut Setup) -> Server {
    setup.app = std::mem::take(&mut setup.app).route("/alive", any(async || "alive"));
    setup.serve().await
}

/// The first caller gets `length` bytes, and a retry what is left of them.
async fn response_of(length: usize, replayed: bool) {
    let mut setup = responding!([max_response = "64KiB"], move || "x".repeat(length));
    let server = served(&mut setup).await;
    let first = ask().at(&server).await;
    assert_eq!((first.status, first.body.len()), (200, length));
    let retry = ask().at(&server).await;
    if replayed {
        retry.assert_replay_of(&first);
    } else {
        retry.assert_refused(409, "idempotency_not_replayable");
        assert_small(&retry);
        assert!(setup.store.usage().bytes < 4096, "{:?}", setup.store);
    }
    assert_eq!((setup.probe.runs(), setup.store.usage().entries), (1, 1));
    assert_alive(&server).await;
}

async fn as_large_as_allowed() {
    response_of(65_536, true).await;
}

async fn a_byte_larger() {
    response_of(65_537, false).await;
}

async fn without_an_end() {
    let forever = stream::unfold((), async |()| {
        tokio::task::yield_now().await;
        Some((Ok::<_, std::io::Error>(vec![b'x'; 4096]), ()))
    });
    let mut setup = responding!([max_response = "64KiB"], once(Body::from_stream(forever)));
    let server = served(&mut setup).await;
    let mut connection = Connection::open(&server).await;
    connection.send(ask().bytes()).await;
    assert_eq!(connection.head().await.status, 200);
    for _ in 0..64 {
        assert!(connection.chunk().await.is_some(), "it went on");
    }
    connection.reset();
    setup.settled().await;
    ask().at(&server).await.assert_refused(409, "idempotency_not_replayable");
    assert_eq!(setup.probe.runs(), 1);
    assert!(setup.store.usage().bytes < 4096, "{:?}", setup.store);
    assert_alive(&server).await;
}

async fn that_breaks_in_the_middle() {
    let (feed, body) = feed();
    let mut setup = responding!([], once(body));
    let server = served(&mut setup).await;
    let mut connection = Connection::open(&server).await;
    connection.send(ask().bytes()).await;
    assert_eq!(connection.head().await.status, 200);
    feed.send("half");
    assert_eq!(connection.chunk().await.as_deref(), Some(&b"half"[..]));
    feed.fail();
    assert_eq!(connection.rest().await, b"", "the caller sees that it is not whole");
    setup.settled().await;
    ask().at(&server).await.assert_refused(409, "idempotency_not_replayable");
    assert_eq!(setup.probe.runs(), 1);
    assert_alive(&server).await;
}

/// A response with `count` headers, as far as a map holds them.
fn many(count: usize) -> Response {
    let mut headers = HeaderMap::new();
    for index in 0..count {
        let name = HeaderName::try_from(format!("x-{index}")).expect("a name");
        let added = headers.try_append(name, HeaderValue::from_static("1"));
        assert!(added.is_ok(), "more than a map holds");
    }
    let mut response = Response::new(Body::from("body"));
    *response.headers_mut() = headers;
    response
}

/// The handler panics on it, which is a 500 like any other.
async fn with_more_headers_than_a_map_holds() {
    let mut setup = responding!([], || many(24_577));
    let server = served(&mut setup).await;
    let first = ask().at(&server).await;
    first.assert_refused(500, "idempotency_handler_panicked");
    ask().at(&server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
    assert_alive(&server).await;
}

/// Most of a map, and all of it but for what hyper adds. A replay carries two headers more than its record.
async fn with_as_many_headers_as_a_map_holds() {
    let mut setup = responding!([max_response = "4MiB"], || many(24_000));
    let server = served(&mut setup).await;
    let first = ask().at(&server).await;
    assert_eq!(first.headers.iter().filter(|(name, _)| name.starts_with("x-")).count(), 24_000);
    ask().at(&server).await.assert_replay_of(&first);
    assert_eq!(setup.probe.runs(), 1);
    assert_alive(&server).await;
}

async fn over_http_1_and_then_http_2() {
    let setup = Setup::of(routes());
    let server = setup.serve().await;
    let ask = send("/order?a=1").key("k").body("x");
    let first = ask.at(&server).await;
    first.assert_ran(201);
    H2::open(&server).await.ask(&ask).await.assert_replay_of(&first);
    assert_eq!((setup.probe.runs(), setup.store.usage().entries), (1, 1));
    assert_alive(&server).await;
}

const SHORTEST: Policy = Policy::DEFAULT.ttl(Duration::from_nanos(1));
const LONGEST_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
const LONGEST: Policy = Policy::DEFAULT.ttl(LONGEST_TTL);

#[idempotent(policy = SHORTEST)]
async fn shortest(State(probe): State<Probe>) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

#[idempotent(policy = LONGEST)]
async fn longest(State(probe): State<Probe>) -> StatusCode {
    probe.run().await;
    StatusCode::CREATED
}

/// A TTL of zero does not compile: idem-macros/tests/ui/range.rs.
async fn times_to_live_at_the_edges() {
    let routes = Router::new()
        .route("/shortest", post(shortest))
        .route("/longest", post(longest))
        .route("/alive", any(async || "alive"));
    let setup = Setup::of(routes);
    let server = setup.serve().await;
    let (short, long) = (send("/shortest").key("s"), send("/longest").key("l"));
    for replayed in [false, true] {
        assert_eq!(short.at(&server).await.is_replay(), replayed);
        assert_eq!(long.at(&server).await.is_replay(), replayed);
    }
    setup.clock.advance(Duration::from_nanos(1));
    short.at(&server).await.assert_ran(201);
    setup.clock.advance(LONGEST_TTL - Duration::from_secs(1));
    assert!(long.at(&server).await.is_replay(), "it lives for a hundred years");
    setup.clock.advance(Duration::from_secs(1));
    long.at(&server).await.assert_ran(201);
    assert_eq!(setup.probe.runs(), 4);
    assert_alive(&server).await;
}

/// A clock that can be set, forwards and backwards, as `SystemClock` cannot.
#[derive(Clone)]
struct WallClock(Arc<AtomicU64>);

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

async fn a_clock_that_is_set() {
    const HOUR: u64 = 3_600_000_000_000;
    let wall = WallClock(Arc::new(AtomicU64::new(500_000 * HOUR)));
    let idempotency = Idempotency::builder(MemoryStore::new()).clock(wall.clone()).build();
    let (app, probe) = Setup::mount(&idempotency, routes());
    let server = Server::start(app).await;
    let ask = send("/order").key("k");
    let first = ask.at(&server).await;
    first.assert_ran(201);
    wall.0.fetch_sub(HOUR, Ordering::SeqCst);
    ask.at(&server).await.assert_replay_of(&first);
    let during = send("/order").key("during");
    during.at(&server).await.assert_ran(201);
    wall.0.fetch_add(HOUR, Ordering::SeqCst);
    assert!(during.at(&server).await.is_replay());
    wall.0.fetch_add(24 * HOUR, Ordering::SeqCst);
    ask.at(&server).await.assert_ran(201);
    assert_eq!(probe.runs(), 3, "a day forward is a day");
    assert_alive(&server).await;
}

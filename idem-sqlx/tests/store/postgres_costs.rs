//! What a request costs the network: round trips and bytes, counted by a proxy.
#![cfg(feature = "postgres")]

use idem_runtime::{Attempt, Claim, Endpoint, Idempotency, PolicyTag, RefusalReason, Rules, RunResult, StorageKey};
use idem_sqlx::PostgresStore;
use idem_testkit::postgres::Postgres;
use idem_testkit::proxy::{Direction, Fault, Proxy};

use crate::common::*;

/// A server, the network before it, and an engine behind that, whose connection knows every statement.
struct Counted {
    _server: Postgres,
    proxy: Proxy,
    engine: Idempotency,
}

async fn counted() -> Counted {
    let server = Postgres::quick().await;
    let proxy = Proxy::to(server.port()).await;
    let store = PostgresStore::builder().max_connections(1).connect(&server.url_through(proxy.port())).await.unwrap();
    store.migrate().await.unwrap();
    let engine = Idempotency::new(store.clone());
    engine.run(attempt(key()), |_| async { executed("first") }).await.unwrap();
    claim(&store, &key()).await.release().await.unwrap();
    Counted { _server: server, proxy, engine }
}

fn from_orders(key: StorageKey, fingerprint: idem_runtime::Fingerprint) -> Attempt {
    let rules = Rules { ttl: TTL, ..Rules::DEFAULT };
    Attempt::new(key, fingerprint, rules).at(Endpoint::new("POST", "/orders/{id}"))
}

impl Counted {
    /// Returns what a request gets, how many round trips it took, and how many bytes came back.
    async fn run(&self, attempt: Attempt, text: String) -> (Result<RunResult<String>, RefusalReason>, usize, usize) {
        self.proxy.set(Direction::ToClient, Fault::None);
        let before = self.proxy.round_trips();
        let ran = self.engine.run(attempt, move |_| async move { executed(&text) }).await;
        (ran, self.proxy.round_trips() - before, self.proxy.bytes(Direction::ToClient))
    }
}

#[tokio::test]
async fn a_first_execution_takes_two_round_trips_and_a_replay_or_a_refusal_one() {
    let counted = counted().await;
    let key = key();
    let (ran, round_trips, _) = counted.run(from_orders(key, MINE), "response".into()).await;
    assert!(matches!(ran, Ok(RunResult::Executed(_))), "{ran:?}");
    assert_eq!(round_trips, 2, "a first execution");
    let (ran, round_trips, _) = counted.run(from_orders(key, MINE), "another".into()).await;
    assert!(matches!(ran, Ok(RunResult::Replayed(_))), "{ran:?}");
    assert_eq!(round_trips, 1, "a replay");
    let running = crate::common::key();
    let (starts, started) = tokio::sync::oneshot::channel();
    let (ends, ended) = tokio::sync::oneshot::channel::<()>();
    let first = tokio::spawn({
        let engine = counted.engine.clone();
        let handler = move |_| async move {
            starts.send(()).unwrap();
            ended.await.unwrap();
            executed("response")
        };
        async move { engine.run(from_orders(running, MINE), handler).await }
    });
    started.await.unwrap();
    let (ran, round_trips, _) = counted.run(from_orders(running, MINE), "another".into()).await;
    assert!(matches!(ran, Err(RefusalReason::InFlight)), "{ran:?}");
    assert_eq!(round_trips, 1, "a refusal while the first one runs");
    ends.send(()).unwrap();
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_mismatch_takes_one_round_trip_and_little_of_the_network_however_long_the_record_is() {
    let counted = counted().await;
    let key = key();
    let (ran, ..) = counted.run(from_orders(key, MINE), "x".repeat(1024 * 1024)).await;
    assert!(matches!(ran, Ok(RunResult::Executed(_))), "{ran:?}");
    let (ran, round_trips, bytes) = counted.run(from_orders(key, OTHER), "another".into()).await;
    assert!(matches!(ran, Err(RefusalReason::Mismatch)), "{ran:?}");
    assert_eq!(round_trips, 1);
    assert!(bytes < 1024, "{bytes}");
    let (ran, _, bytes) = counted.run(from_orders(key, MINE), "another".into()).await;
    assert!(matches!(ran, Ok(RunResult::Replayed(_))), "{ran:?}");
    assert!(bytes > 1024 * 1024, "{bytes}");
}

#[tokio::test]
async fn a_change_of_the_policy_is_told_from_another_request_without_the_record() {
    let counted = counted().await;
    let key = key();
    let under = |fingerprint, tag| from_orders(key, fingerprint).under(PolicyTag::NONE.with(&[tag]));
    counted.run(under(MINE, 1), "x".repeat(100_000)).await.0.unwrap();
    for (tag, expected) in [(1, false), (2, true)] {
        let (ran, round_trips, bytes) = counted.run(under(OTHER, tag), "another".into()).await;
        assert_eq!(matches!(ran, Err(RefusalReason::PolicyChanged)), expected, "{ran:?}");
        assert!(round_trips == 1 && bytes < 1024, "{round_trips} {bytes}");
    }
}

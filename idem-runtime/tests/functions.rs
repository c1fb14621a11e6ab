//! The attribute on plain functions: the block runs at most once for a key, and the function stays what it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use idem_runtime::{Abandoned, Idempotency, RefusalReason, WhenInFlight, idempotent};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

#[derive(Clone)]
struct App {
    idempotency: Idempotency,
    runs: Arc<AtomicUsize>,
    /// A permit lets one run end.
    gate: Arc<Semaphore>,
}

impl App {
    fn new(permits: usize) -> Self {
        Self { idempotency: Idempotency::in_memory(), runs: Arc::default(), gate: Arc::new(Semaphore::new(permits)) }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

#[derive(Clone, Serialize)]
struct Order {
    id: u64,
    item: &'static str,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    run: usize,
}

#[derive(Debug)]
enum ShipError {
    OutOfStock,
    Refused(RefusalReason),
}

impl From<RefusalReason> for ShipError {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(reason)
    }
}

#[idempotent(engine = app.idempotency, scope = "ship", key = order.id, fingerprint = order)]
async fn ship(app: App, order: Order) -> Result<Receipt, ShipError> {
    let run = app.runs.fetch_add(1, Ordering::SeqCst) + 1;
    app.gate.acquire().await.map_err(|_| ShipError::OutOfStock)?.forget();
    if order.item == "nothing" { Err(ShipError::OutOfStock) } else { Ok(Receipt { run }) }
}

#[idempotent(engine = app.idempotency, scope = "ship", key = id, in_flight = wait("60s"))]
async fn ship_waiting(app: App, id: u64) -> Result<Receipt, ShipError> {
    let run = app.runs.fetch_add(1, Ordering::SeqCst) + 1;
    app.gate.acquire().await.map_err(|_| ShipError::OutOfStock)?.forget();
    Ok(Receipt { run })
}

const TEA: Order = Order { id: 17, item: "tea" };

#[tokio::test]
async fn the_block_runs_once_and_later_calls_get_its_value() {
    let app = App::new(2);
    assert_eq!(ship(app.clone(), TEA).await.unwrap(), Receipt { run: 1 });
    assert_eq!(ship(app.clone(), TEA).await.unwrap(), Receipt { run: 1 });
    assert_eq!(ship(app.clone(), Order { id: 18, ..TEA }).await.unwrap(), Receipt { run: 2 });
    assert_eq!(app.runs(), 2);
}

#[tokio::test]
async fn another_message_under_the_same_key_is_a_mismatch() {
    let app = App::new(1);
    ship(app.clone(), TEA).await.unwrap();
    let refused = ship(app.clone(), Order { item: "coffee", ..TEA }).await;
    assert!(matches!(refused, Err(ShipError::Refused(RefusalReason::Mismatch))), "{refused:?}");
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn an_error_releases_the_key() {
    let app = App::new(2);
    let nothing = Order { id: 1, item: "nothing" };
    assert!(matches!(ship(app.clone(), nothing.clone()).await, Err(ShipError::OutOfStock)));
    assert!(matches!(ship(app.clone(), nothing).await, Err(ShipError::OutOfStock)));
    assert_eq!(app.runs(), 2);
}

#[tokio::test]
async fn of_twenty_calls_at_once_one_runs_and_all_get_its_value() {
    let app = App::new(0);
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        calls.spawn(ship_waiting(app.clone(), 1));
    }
    app.gate.add_permits(1);
    while let Some(receipt) = calls.join_next().await {
        assert_eq!(receipt.unwrap().unwrap(), Receipt { run: 1 });
    }
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn a_call_in_flight_refuses_others_unless_they_wait() {
    let app = App::new(0);
    let first = tokio::spawn(ship(app.clone(), TEA));
    while app.runs() == 0 {
        tokio::task::yield_now().await;
    }
    let refused = ship(app.clone(), TEA).await;
    assert!(matches!(refused, Err(ShipError::Refused(RefusalReason::InFlight))), "{refused:?}");
    app.gate.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), Receipt { run: 1 });
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_block_running_and_its_value_recorded() {
    let app = App::new(0);
    let caller = tokio::spawn(ship(app.clone(), TEA));
    while app.runs() == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    app.gate.add_permits(1);
    app.idempotency.drain().await;
    assert_eq!(ship(app.clone(), TEA).await.unwrap(), Receipt { run: 1 });
    assert_eq!(app.runs(), 1);
}

/// Tells when it is dropped.
struct Guard(Option<oneshot::Sender<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.take().map(|dropped| dropped.send(()));
    }
}

#[idempotent(engine = app.idempotency, scope = "guarded", key = id)]
async fn guarded(app: App, id: u64, _guard: Guard) -> Result<(), ShipError> {
    app.runs.fetch_add(1, Ordering::SeqCst);
    app.gate.acquire().await.map_err(|_| ShipError::OutOfStock)?.forget();
    Ok(())
}

#[tokio::test]
async fn an_argument_that_the_block_does_not_mention_lives_as_long_as_the_block() {
    let app = App::new(0);
    let (sender, mut dropped) = oneshot::channel();
    let caller = tokio::spawn(guarded(app.clone(), 1, Guard(Some(sender))));
    while app.runs() == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert!(dropped.try_recv().is_err(), "the block still runs");
    app.gate.add_permits(1);
    dropped.await.unwrap();
}

#[tokio::test]
async fn the_attribute_and_the_call_without_it_share_keys_and_values() {
    let app = App::new(1);
    ship_waiting(app.clone(), 1).await.unwrap();
    let once = app.idempotency.once("ship", "1").in_flight(WhenInFlight::Reject).abandoned(Abandoned::Refuse);
    let receipt: Result<Receipt, RefusalReason> = once.run(async || Ok(Receipt { run: 99 })).await;
    assert_eq!(receipt.unwrap(), Receipt { run: 1 });
}

/// The same function, as the next version of the program has it.
mod next_version {
    use super::{App, Order, ShipError, idempotent};

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    pub(super) struct Parcel {
        pub(super) number: u64,
    }

    #[idempotent(engine = app.idempotency, scope = "ship", key = order.id, fingerprint = order)]
    pub(super) async fn ship(app: App, order: Order) -> Result<Parcel, ShipError> {
        app.runs.fetch_add(1, super::Ordering::SeqCst);
        Ok(Parcel { number: order.id })
    }
}

#[tokio::test]
async fn a_value_of_another_type_is_an_error_that_names_key_and_type_and_never_a_second_run() {
    let app = App::new(1);
    assert_eq!(ship(app.clone(), TEA).await.unwrap(), Receipt { run: 1 });
    for _ in 0..2 {
        let changed = next_version::ship(app.clone(), TEA).await;
        let Err(ShipError::Refused(reason)) = changed else { panic!("{changed:?}") };
        assert!(!reason.is_retryable(), "{reason:?}");
        let text = reason.to_string();
        assert!(text.contains(std::any::type_name::<next_version::Parcel>()), "{text}");
        let key = text.split_once("under key ").and_then(|(_, rest)| rest.split(' ').next()).unwrap();
        let once = format!("{:?}", app.idempotency.once("ship", "17"));
        assert!(key.len() >= 8 && once.contains(key), "{text} names another key than {once}");
    }
    assert_eq!(app.runs(), 1);
    // The version before still has its value.
    assert_eq!(ship(app.clone(), TEA).await.unwrap(), Receipt { run: 1 });
}

struct Nightly(Idempotency, AtomicUsize);

impl Nightly {
    #[idempotent(engine = self.0, scope = b"nightly", key = date, ttl = "36h")]
    async fn report(self: Arc<Self>, date: &'static str) -> Result<usize, RefusalReason> {
        Ok(date.len() + self.1.fetch_add(1, Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_method_takes_itself_in_an_arc() {
    let nightly = Arc::new(Nightly(Idempotency::in_memory(), AtomicUsize::new(0)));
    assert_eq!(Arc::clone(&nightly).report("2026-11-28").await.unwrap(), 10);
    assert_eq!(Arc::clone(&nightly).report("2026-11-28").await.unwrap(), 10);
    assert_eq!(Arc::clone(&nightly).report("2026-11-29").await.unwrap(), 11);
}

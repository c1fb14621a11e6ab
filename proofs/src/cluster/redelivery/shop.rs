//! The function that must not run twice, and its effects.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use idem_axum::RefusalReason;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::yield_now;

use super::Order;

/// What is wrong with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrderFault {
    None,
    /// This many runs fail, before they have an effect.
    Fails(u64),
    /// A poison message.
    AlwaysFails,
    /// Another one.
    AlwaysPanics,
}

/// What shipping an order gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parcel {
    /// Counts all parcels.
    pub number: usize,
}

#[derive(Debug)]
pub(super) enum ShipError {
    OutOfStock,
    Refused(RefusalReason),
}

impl From<RefusalReason> for ShipError {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(reason)
    }
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    Started,
    Shipped,
}

#[derive(Debug)]
pub(super) struct Shop {
    faults: BTreeMap<u64, OrderFault>,
    /// The point that the last run of each order has reached.
    points: watch::Sender<BTreeMap<u64, Point>>,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    runs: BTreeMap<u64, u64>,
    parcels: Vec<Order>,
    told: Vec<(u64, Parcel)>,
    seen: BTreeMap<&'static str, usize>,
}

impl Shop {
    pub(super) fn new(faults: BTreeMap<u64, OrderFault>) -> Self {
        Self { faults, points: watch::Sender::default(), ledger: Mutex::default() }
    }

    /// Ships an order, with a few points before and after the effect at which it can be dropped.
    pub(super) async fn ship(&self, order: &Order) -> Result<Parcel, ShipError> {
        self.reach(order.id, Point::Started).await;
        self.start(order.id)?;
        pause().await;
        let number = {
            let mut ledger = self.ledger();
            ledger.parcels.push(order.clone());
            ledger.parcels.len()
        };
        self.reach(order.id, Point::Shipped).await;
        Ok(Parcel { number })
    }

    async fn reach(&self, id: u64, point: Point) {
        self.points.send_modify(|points| {
            points.insert(id, point);
        });
        pause().await;
    }

    /// Returns when a run of this order has reached the point.
    pub(super) async fn reached(&self, id: u64, point: Point) {
        let mut points = self.points.subscribe();
        drop(points.wait_for(|points| points.get(&id) >= Some(&point)).await);
    }

    fn start(&self, id: u64) -> Result<(), ShipError> {
        let run = {
            let mut ledger = self.ledger();
            let run = ledger.runs.entry(id).or_default();
            *run += 1;
            *run
        };
        match self.faults.get(&id).unwrap_or(&OrderFault::None) {
            OrderFault::Fails(runs) if run <= *runs => Err(ShipError::OutOfStock),
            OrderFault::None | OrderFault::Fails(_) => Ok(()),
            OrderFault::AlwaysFails => Err(ShipError::OutOfStock),
            // A panic without the message that the hook prints.
            OrderFault::AlwaysPanics => resume_unwind(Box::new("poison")),
        }
    }

    /// A consumer got this parcel for an order.
    pub(super) fn tell(&self, id: u64, parcel: Parcel) {
        self.ledger().told.push((id, parcel));
    }

    /// Counts what happened.
    pub(super) fn count(&self, what: &'static str) {
        *self.ledger().seen.entry(what).or_default() += 1;
    }

    /// Returns the first parcel of an order.
    pub(super) fn parcel_of(&self, id: u64) -> Option<Parcel> {
        let place = self.ledger().parcels.iter().position(|order| order.id == id)?;
        Some(Parcel { number: place + 1 })
    }

    pub(super) fn parcels(&self) -> Vec<Order> {
        self.ledger().parcels.clone()
    }

    pub(super) fn told(&self) -> Vec<(u64, Parcel)> {
        self.ledger().told.clone()
    }

    pub(super) fn seen(&self) -> BTreeMap<&'static str, usize> {
        self.ledger().seen.clone()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn pause() {
    for _ in 0..3 {
        yield_now().await;
    }
}

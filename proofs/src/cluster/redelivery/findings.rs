//! What came of a run, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::queue::{DeadLetterReason, Queue};
use super::shop::{OrderFault, Parcel, Shop};
use super::{Order, Plan};

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An order was shipped more than once.
    Twice(u64),
    /// An order that can be shipped was not.
    Lost(u64),
    /// An order that cannot be shipped was.
    Shipped(u64),
    /// Consumers were told of several parcels for one order, or of one that is not its own.
    OtherParcel(u64),
    /// A dead letter that should not be one, or a poison message that is none.
    DeadLetters(u64),
}

/// What a run left behind.
#[derive(Debug)]
pub struct Findings {
    seed: u64,
    plan: Plan,
    parcels: Vec<Order>,
    told: Vec<(u64, Parcel)>,
    dead: Vec<(Order, DeadLetterReason)>,
    /// How often each thing happened.
    pub seen: BTreeMap<&'static str, usize>,
    /// How many processes died.
    pub deaths: usize,
}

impl Findings {
    pub(super) fn new(seed: u64, plan: Plan, queue: &Queue, shop: &Shop, deaths: usize) -> Self {
        let (parcels, told, seen) = (shop.parcels(), shop.told(), shop.seen());
        Self { seed, plan, parcels, told, dead: queue.dead(), seen, deaths }
    }

    /// Compares effects with distinct orders.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (&id, fault) in &self.plan.faults {
            let parcels: Vec<usize> =
                (1..).zip(&self.parcels).filter(|(_, order)| order.id == id).map(|(number, _)| number).collect();
            let poison = matches!(fault, OrderFault::AlwaysFails | OrderFault::AlwaysPanics);
            match parcels.len() {
                0 if !poison => faults.push(Fault::Lost(id)),
                1.. if poison => faults.push(Fault::Shipped(id)),
                2.. => faults.push(Fault::Twice(id)),
                _ => {}
            }
            let told = self.told.iter().filter(|(of, _)| *of == id);
            if told.clone().any(|(_, parcel)| parcels.first() != Some(&parcel.number)) {
                faults.push(Fault::OtherParcel(id));
            }
            if !self.dead_letters_are_right(id, poison) {
                faults.push(Fault::DeadLetters(id));
            }
        }
        faults
    }

    /// Poison ends as dead letters. An order that was sent with two contents may leave some: another content is refused also while
    /// an execution runs that will fail.
    fn dead_letters_are_right(&self, id: u64, poison: bool) -> bool {
        let mut dead = self.dead.iter().filter(|(order, _)| order.id == id);
        let messages = self.plan.messages.iter().filter(|order| order.id == id);
        if poison {
            return dead.count() == messages.count();
        }
        let contents: BTreeSet<&Order> = messages.collect();
        dead.all(|(_, why)| contents.len() > 1 && *why == DeadLetterReason::Mismatch)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, plan, parcels, dead, seen, deaths, .. } = self;
        writeln!(f, "SEED={seed}: {:?}", self.faults())?;
        writeln!(f, "  {} messages, {} parcels, {deaths} deaths, {seen:?}", plan.messages.len(), parcels.len())?;
        writeln!(f, "  dead letters: {dead:?}")?;
        writeln!(f, "  parcels: {parcels:?}")?;
        writeln!(f, "  faults: {:?}", plan.faults)
    }
}

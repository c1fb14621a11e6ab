//! A queue that delivers at least once, in any order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idem_testkit::dice::Dice;

use super::{Order, is_final};

/// After this many failures a message is a dead letter.
const MOST_FAILURES: u32 = 5;

/// Why a message is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeadLetterReason {
    Failed,
    Mismatch,
    OutcomeUnknown,
    /// The consumer had another reason, which it should not have.
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: usize,
    messages: BTreeMap<usize, Message>,
    dead: Vec<(Order, DeadLetterReason)>,
}

#[derive(Debug)]
struct Message {
    order: Order,
    /// Deliveries that have not ended.
    out: usize,
    failures: u32,
}

impl Queue {
    pub(super) fn of(orders: &[Order]) -> Arc<Self> {
        let queue = Self::default();
        queue.send(orders.to_vec());
        Arc::new(queue)
    }

    pub(super) fn send(&self, orders: Vec<Order>) {
        let mut state = self.state();
        for order in orders {
            let number = state.next;
            state.next += 1;
            state.messages.insert(number, Message { order, out: 0, failures: 0 });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().messages.is_empty()
    }

    /// Delivers any message. One that is out may be delivered once more, as if its time to be acknowledged had passed.
    pub(super) fn deliver(self: &Arc<Self>, dice: &mut Dice) -> Option<Delivery> {
        let again = dice.percent(25);
        let mut state = self.state();
        let ready: Vec<usize> = state
            .messages
            .iter()
            .filter(|(_, message)| message.out == 0 || again && message.out == 1)
            .map(|(number, _)| *number)
            .collect();
        let number = if ready.is_empty() { return None } else { dice.pick(&ready) };
        let message = state.messages.get_mut(&number)?;
        message.out += 1;
        let order = message.order.clone();
        Some(Delivery { queue: Arc::clone(self), number, order })
    }

    /// Takes the dead letters out that need a person.
    pub(super) fn take_unknown(&self) -> Vec<Order> {
        let mut state = self.state();
        let unknown = state.dead.iter().filter(|(_, why)| !is_final(*why)).map(|(order, _)| order.clone()).collect();
        state.dead.retain(|(_, why)| is_final(*why));
        unknown
    }

    pub(super) fn dead(&self) -> Vec<(Order, DeadLetterReason)> {
        self.state().dead.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message in the hands of a consumer. If it is dropped the message is delivered again.
#[derive(Debug)]
pub(super) struct Delivery {
    queue: Arc<Queue>,
    number: usize,
    pub(super) order: Order,
}

impl Delivery {
    /// Removes the message, wherever else it is out.
    pub(super) fn acknowledge(self) {
        self.queue.state().messages.remove(&self.number);
    }

    /// Counts a failure.
    pub(super) fn fail(self) {
        let mut state = self.queue.state();
        let Some(message) = state.messages.get_mut(&self.number) else { return };
        message.failures += 1;
        if message.failures == MOST_FAILURES {
            state.bury(self.number, DeadLetterReason::Failed);
        }
    }

    pub(super) fn bury(self, why: DeadLetterReason) {
        self.queue.state().bury(self.number, why);
    }
}

impl State {
    fn bury(&mut self, number: usize, why: DeadLetterReason) {
        if let Some(message) = self.messages.remove(&number) {
            self.dead.push((message.order, why));
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(message) = self.queue.state().messages.get_mut(&self.number) {
            message.out -= 1;
        }
    }
}

//! A consumer of the queue, as the guide's table says it should act, or with a mistake.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use idem_axum::{Abandoned, Idempotency, RefusalReason, idempotent};
use idem_testkit::dice::Dice;
use tokio::task::yield_now;

use super::Order;
use super::queue::{DeadLetterReason, Delivery, Queue};
use super::shop::{Parcel, Point, ShipError, Shop};

/// What a consumer can do wrong. The checker has to find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// It takes a refusal as in flight for a success.
    AcknowledgesInFlight,
    /// It acknowledges first, so that nothing is delivered twice.
    AcknowledgesFirst,
    /// It does not protect the function at all.
    Unprotected,
    /// Its key is that of the delivery, not that of the order.
    KeyOfDelivery,
    /// It lets the function run again if its outcome is unknown.
    Reruns,
}

/// Why a consumer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    NothingLeft,
    Died,
}

pub(super) struct Consumer {
    app: App,
    queue: Arc<Queue>,
    dice: Dice,
    mistake: Option<Mistake>,
    /// Set for a separate process, which waits this long before it takes the next message.
    pace: Option<Duration>,
    /// The process dies at this delivery.
    dies_at: Option<u64>,
}

#[derive(Clone)]
struct App {
    idempotency: Idempotency,
    shop: Arc<Shop>,
}

#[idempotent(engine = app.idempotency, scope = "ship", key = order.id, fingerprint = order, ttl = "7d")]
async fn ship(app: App, order: Order) -> Result<Parcel, ShipError> {
    app.shop.ship(&order).await
}

/// The same without the attribute, for this key.
async fn ship_once(app: App, order: Order, key: String, abandoned: Abandoned) -> Result<Parcel, ShipError> {
    let once = app.idempotency.once("ship", key).fingerprint(&order).abandoned(abandoned);
    let once = once.ttl(Duration::from_secs(7 * 86_400));
    once.run(async move || app.shop.ship(&order).await).await
}

impl Consumer {
    pub(super) fn new(
        idempotency: Idempotency,
        shop: Arc<Shop>,
        queue: Arc<Queue>,
        dice: Dice,
        mistake: Option<Mistake>,
    ) -> Self {
        Self { app: App { idempotency, shop }, queue, dice, mistake, pace: None, dies_at: None }
    }

    pub(super) fn in_process(self, pace: Duration, dies_at: Option<u64>) -> Self {
        Self { pace: Some(pace), dies_at, ..self }
    }

    /// Takes messages until there are none. Every third one or so is dropped at some point.
    pub(super) async fn run(mut self) -> Exit {
        let mut deliveries = 0;
        while !self.queue.is_empty() {
            let Some(delivery) = self.queue.deliver(&mut self.dice) else {
                self.pause().await;
                continue;
            };
            deliveries += 1;
            if self.dies_at == Some(deliveries) {
                self.die_during(delivery).await;
                return Exit::Died;
            }
            let polls = if self.dice.percent(30) { self.dice.within(0..=6) } else { u64::MAX };
            if dropped_after(polls, self.handle(delivery)).await.is_none() {
                self.app.shop.count("a consumer was dropped");
            }
            self.pause().await;
        }
        Exit::NothingLeft
    }

    /// Handles a delivery until the function is at some point, or further, and is then ready to die.
    async fn die_during(&mut self, delivery: Delivery) {
        let (shop, id) = (Arc::clone(&self.app.shop), delivery.order.id);
        let point = self.dice.pick(&[None, Some(Point::Started), Some(Point::Shipped), Some(Point::Shipped)]);
        let further = self.dice.within(0..=8);
        tokio::select! {
            biased;
            () = async {
                if let Some(point) = point {
                    shop.reached(id, point).await;
                }
            } => {}
            // It was a replay, a refusal or an error.
            () = self.handle(delivery) => {}
        }
        for _ in 0..further {
            yield_now().await;
        }
        shop.count("a process died");
    }

    /// Takes messages until there are none, and is never dropped.
    pub(super) async fn run_undisturbed(mut self) {
        while !self.queue.is_empty() {
            match self.queue.deliver(&mut self.dice) {
                Some(delivery) => self.handle(delivery).await,
                None => self.pause().await,
            }
        }
    }

    /// Lets others run. Claims of dead processes expire in real time.
    async fn pause(&self) {
        match self.pace {
            Some(pace) => tokio::time::sleep(pace).await,
            None => yield_now().await,
        }
    }

    /// Handles one delivery. What the guide says is the arm; what it forbids is a mistake.
    pub(super) async fn handle(&self, delivery: Delivery) {
        if self.mistake == Some(Mistake::AcknowledgesFirst) {
            let order = delivery.order.clone();
            delivery.acknowledge();
            yield_now().await;
            drop(AssertUnwindSafe(self.ship(order)).catch_unwind().await);
            return;
        }
        let order = delivery.order.clone();
        let id = order.id;
        let shipped = AssertUnwindSafe(self.ship(order)).catch_unwind().await;
        // Between the effect and the acknowledgement.
        yield_now().await;
        let shop = &self.app.shop;
        match shipped {
            Ok(Ok(parcel)) => {
                shop.tell(id, parcel);
                shop.count("shipped");
                delivery.acknowledge();
            }
            Ok(Err(ShipError::OutOfStock)) => {
                shop.count("failed");
                delivery.fail();
            }
            Err(_) => {
                shop.count("panicked");
                delivery.fail();
            }
            Ok(Err(ShipError::Refused(RefusalReason::InFlight)))
                if self.mistake == Some(Mistake::AcknowledgesInFlight) =>
            {
                delivery.acknowledge();
            }
            // Dropped, and so delivered again.
            Ok(Err(ShipError::Refused(reason))) if reason.is_retryable() => shop.count("in flight"),
            Ok(Err(ShipError::Refused(RefusalReason::Mismatch))) => {
                shop.count("mismatch");
                delivery.bury(DeadLetterReason::Mismatch);
            }
            Ok(Err(ShipError::Refused(RefusalReason::OutcomeUnknown))) => {
                shop.count("outcome unknown");
                delivery.bury(DeadLetterReason::OutcomeUnknown);
            }
            Ok(Err(ShipError::Refused(_))) => delivery.bury(DeadLetterReason::Other),
        }
    }

    async fn ship(&self, order: Order) -> Result<Parcel, ShipError> {
        let app = self.app.clone();
        let key = order.id.to_string();
        match self.mistake {
            Some(Mistake::Unprotected) => app.shop.ship(&order).await,
            Some(Mistake::KeyOfDelivery) => {
                let key = format!("{key} {:x}", self.dice.clone().roll());
                ship_once(app, order, key, Abandoned::Refuse).await
            }
            Some(Mistake::Reruns) => ship_once(app, order, key, Abandoned::Rerun).await,
            // Both share their keys and values.
            _ if self.dice.clone().percent(50) => ship_once(app, order, key, Abandoned::Refuse).await,
            _ => ship(app, order).await,
        }
    }
}

/// Polls the future until it is ready or was pending this many times, and drops it then: `None`.
pub async fn dropped_after<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

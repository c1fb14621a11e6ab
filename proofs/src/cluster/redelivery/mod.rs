//! A queue that delivers messages more than once and in any order, and consumers that are dropped at any point, or die with their
//! runtime. What was shipped is compared with what was sent. All chance comes from a seed.

mod consumer;
mod findings;
mod queue;
mod shop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use idem_axum::{Idempotency, IdempotencyBuilder, KeyStatus, Outcome};
use idem_redis::RedisStore;
use idem_sqlx::{PostgresStore, SqliteStore};
use idem_testkit::dice::Dice;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

use self::consumer::{Consumer, Exit};
pub use self::consumer::{Mistake, dropped_after};
pub use self::findings::{Fault, Findings};
use self::queue::{DeadLetterReason, Queue};
use self::shop::{OrderFault, Shop};

/// Consumers that take messages at the same time.
const CONSUMERS: usize = 2;
/// Short, since a claim is known as abandoned only when its lease has expired.
const LEASE: Duration = Duration::from_secs(2);
/// How long a process waits before it takes the next message.
const PACE: Duration = Duration::from_millis(2);

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Order {
    /// What the order is known by.
    pub id: u64,
    /// What is to be shipped.
    pub item: &'static str,
}

/// What is sent, and what goes wrong with it.
#[derive(Debug)]
struct Plan {
    messages: Vec<Order>,
    faults: BTreeMap<u64, OrderFault>,
}

impl Plan {
    fn of(seed: u64, orders: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let (mut messages, mut faults) = (Vec::new(), BTreeMap::new());
        for id in 0..orders {
            let fault = match dice.within(0..=19) {
                0 => OrderFault::AlwaysFails,
                1 => OrderFault::AlwaysPanics,
                2..=7 => OrderFault::Fails(dice.within(1..=2)),
                _ => OrderFault::None,
            };
            // A sender that is not sure sends again, and now and then it has changed its mind.
            for _ in 0..dice.within(1..=3) {
                messages.push(Order { id, item: if dice.percent(5) { "coffee" } else { "tea" } });
            }
            faults.insert(id, fault);
        }
        Self { messages, faults }
    }
}

/// Two consumers in this process, over a store in memory. The same seed tells the same story.
///
/// # Panics
/// If no runtime can be made.
pub fn in_one_process(seed: u64, orders: u64, mistake: Option<Mistake>) -> Findings {
    let plan = Plan::of(seed, orders);
    let (queue, shop) = (Queue::of(&plan.messages), Arc::new(Shop::new(plan.faults.clone())));
    current_thread().block_on(async {
        let idempotency = Idempotency::in_memory();
        let consumers = (0..CONSUMERS).map(|number| {
            let dice = Dice::new(seed, &format!("consumer {number}"));
            Consumer::new(idempotency.clone(), Arc::clone(&shop), Arc::clone(&queue), dice, mistake).run()
        });
        join_all(consumers).await;
        idempotency.drain().await;
    });
    Findings::new(seed, plan, &queue, &shop, 0)
}

/// Two consumers with a runtime and a store of their own each, as two processes have them. Now and then one dies: its runtime is
/// dropped with all that runs in it. Claims of the dead are settled by an operator, who sees what was shipped.
///
/// # Panics
/// If the store cannot be reached.
pub fn in_processes(seed: u64, orders: u64, store: &str, mistake: Option<Mistake>) -> Findings {
    let plan = Plan::of(seed, orders);
    let (queue, shop) = (Queue::of(&plan.messages), Arc::new(Shop::new(plan.faults.clone())));
    let (deaths, run) = (AtomicUsize::new(0), format!("run-{seed}-{mistake:?}"));
    let consume = |number: usize| {
        // No seed dies for ever.
        for life in 0..4 {
            let mut dice = Dice::new(seed, &format!("consumer {number}, life {life}"));
            let runtime = current_thread();
            let exit = runtime.block_on(async {
                let idempotency = open(store, &run).await;
                let dies_at = (life < 3).then(|| dice.within(2..=8));
                let consumer = Consumer::new(idempotency.clone(), Arc::clone(&shop), Arc::clone(&queue), dice, mistake);
                let exit = consumer.in_process(PACE, dies_at).run().await;
                if exit == Exit::NothingLeft {
                    idempotency.drain().await;
                }
                exit
            });
            // Drops what runs, wherever it is.
            drop(runtime);
            if exit == Exit::NothingLeft {
                break;
            }
            deaths.fetch_add(1, Ordering::Relaxed);
        }
    };
    let consume = &consume;
    loop {
        std::thread::scope(|scope| (0..CONSUMERS).for_each(|number| drop(scope.spawn(move || consume(number)))));
        let unknown = queue.take_unknown();
        if unknown.is_empty() {
            break;
        }
        current_thread().block_on(async { settle(&open(store, &run).await, &shop, &unknown).await });
        queue.send(unknown);
    }
    Findings::new(seed, plan, &queue, &shop, deaths.into_inner())
}

/// What an operator does with dead letters whose outcome is unknown: looks whether the parcel has left the house, and says so.
async fn settle(idempotency: &Idempotency, shop: &Shop, orders: &[Order]) {
    for order in orders {
        let once = idempotency.once("ship", order.id.to_string());
        // Another message of the same order may have been settled before.
        let report = once.inspect().await.expect("the store is there");
        if report.is_none_or(|report| report.status() != KeyStatus::OutcomeUnknown) {
            continue;
        }
        let outcome = match shop.parcel_of(order.id) {
            Some(parcel) => Outcome::value(&parcel).expect("a parcel is JSON"),
            None => Outcome::Release,
        };
        once.settle(outcome).await.expect("the outcome is unknown");
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Connects to a store as a new process does. Each run has another namespace.
///
/// # Panics
/// If the store cannot be reached.
pub async fn open(store: &str, run: &str) -> Idempotency {
    let builder: IdempotencyBuilder = if let Some(path) = store.strip_prefix("sqlite://") {
        let store = SqliteStore::open(path).await.expect("the file can be opened");
        store.migrate().await.expect("the table can be made");
        Idempotency::builder(store)
    } else if store.starts_with("postgres://") {
        let store = PostgresStore::connect(store).await.expect("the database lets us in");
        store.migrate().await.expect("the table can be made");
        Idempotency::builder(store)
    } else {
        Idempotency::builder(RedisStore::connect(store).await.expect("the server lets us in"))
    };
    builder.namespace(run).lease(LEASE).build()
}

/// Ships one order with a consumer that is dropped after this many polls, and then with another one that is not. Returns how many
/// parcels were shipped, and whether the first consumer was dropped before its end.
///
/// # Panics
/// If the store cannot be reached.
pub async fn dropped_once(idempotency: &Idempotency, id: u64, polls: u64) -> (usize, bool) {
    let queue = Queue::of(&[Order { id, item: "tea" }]);
    let shop = Arc::new(Shop::new(BTreeMap::new()));
    let mut dice = Dice::new(id, "dropped");
    let consumer = Consumer::new(idempotency.clone(), Arc::clone(&shop), Arc::clone(&queue), dice.clone(), None);
    let delivery = queue.deliver(&mut dice).expect("a message");
    let ended = dropped_after(polls, consumer.handle(delivery)).await.is_some();
    consumer.run_undisturbed().await;
    (shop.parcels().len(), !ended)
}

/// Whether nothing of it needs a person.
fn is_final(why: DeadLetterReason) -> bool {
    why != DeadLetterReason::OutcomeUnknown
}

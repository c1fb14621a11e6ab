//! One seed: what goes wrong and when, and what came of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use turmoil::Sim;

use super::client::{Client, Order, script};
use super::server::{Keeps, Server, SimulatedClock};
use super::shop::{Protection, Shop};
use crate::history::{Event, History, LAST_LOOK, Line, SERVER};
use crate::trace::{self, Observer, Trace};
use idem_testkit::dice::Dice;

const CLIENTS: [&str; 3] = ["anna", "ben", "carla"];
/// From here on nothing goes wrong any more.
const CALM: Duration = Duration::from_secs(8);
/// After the longest body, the longest wait and the longest patience that began before.
const AUDIT: Duration = Duration::from_secs(12);
const LONGEST_BODY: Duration = Duration::from_secs(4);
/// The last look comes as long after the last execution.
const LEASE: Duration = LONGEST_BODY;
const END: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(5);

/// What may go wrong under a seed. Each kind is on in some seeds and off in others, since faults hide one another.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Clients hang up.
    pub hasty: bool,
    /// How often a message is lost, and the connection with it.
    pub loss: f64,
    pub latency: Duration,
    /// For how many keys the store has room.
    pub room: usize,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Step {
    at: Duration,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Crash(&'static str),
    Bounce(&'static str),
    Partition(&'static str),
    Deaf(&'static str),
    Mute(&'static str),
    Hold(&'static str),
    Heal(&'static str),
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let hasty = dice.percent(70);
        let loss = if dice.percent(40) { 0.03 } else { 0.0 };
        let latency = dice.millis(2..=250);
        let mut steps = Vec::new();
        let mut pair = |dice: &mut Dice, action, back| {
            let at = dice.millis(200..=6500);
            steps.push(Step { at, action });
            steps.push(Step { at: (at + dice.millis(50..=2500)).min(CALM), action: back });
        };
        if dice.percent(50) {
            for _ in 0..dice.within(1..=4) {
                let client = dice.pick(&CLIENTS);
                let kinds = [Action::Partition, Action::Deaf, Action::Mute, Action::Hold];
                let kind = dice.pick(&kinds);
                pair(&mut dice, kind(client), Action::Heal(client));
            }
        }
        if dice.percent(40) {
            let client = dice.pick(&CLIENTS);
            pair(&mut dice, Action::Crash(client), Action::Bounce(client));
        }
        if dice.percent(30) {
            pair(&mut dice, Action::Crash(SERVER), Action::Bounce(SERVER));
        }
        steps.sort_by_key(|step| step.at);
        let room = if dice.percent(30) { dice.within(2..=6) } else { 10_000 };
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        Self { seed, hasty, loss, latency, room, steps }
    }

    /// Whether the network and the hosts do what they should, all the time.
    pub fn is_quiet(&self) -> bool {
        self.loss == 0.0 && self.steps.is_empty()
    }
}

impl Action {
    fn act(&self, sim: &mut Sim<'_>) -> Event {
        match *self {
            Self::Crash(host) => sim.crash(host),
            Self::Bounce(host) => sim.bounce(host),
            Self::Partition(client) => sim.partition(client, SERVER),
            Self::Deaf(client) => sim.partition_oneway(SERVER, client),
            Self::Mute(client) => sim.partition_oneway(client, SERVER),
            Self::Hold(client) => sim.hold(client, SERVER),
            Self::Heal(client) => heal(sim, client),
        }
        match *self {
            Self::Crash(host) => Event::Crash { node: host.to_owned() },
            _ => Event::Fault { what: format!("{self:?}") },
        }
    }
}

fn heal(sim: &Sim<'_>, client: &str) {
    sim.release(client, SERVER);
    sim.repair(client, SERVER);
    sim.repair_oneway(client, SERVER);
    sim.repair_oneway(SERVER, client);
}

/// What a seed led to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub lines: Vec<Line>,
    /// What the engine reported.
    pub trace: Vec<trace::Line>,
}

/// Simulates a seed, from the first request to the time when nothing is under way any more.
pub fn run(seed: u64, protection: Protection) -> Outcome {
    run_over(seed, protection, Keeps::InProcess)
}

/// As [`run`], with keys that are kept elsewhere.
pub fn run_over(seed: u64, protection: Protection, keeps: Keeps) -> Outcome {
    let trace = Trace::in_memory();
    let _observed = idem_testkit::subscriber::set_default(Observer::of(trace.clone()));
    let (plan, lines) = simulate(seed, protection, keeps, &trace);
    Outcome { plan, lines, trace: trace.lines() }
}

fn simulate(seed: u64, protection: Protection, keeps: Keeps, trace: &Trace) -> (Plan, Vec<Line>) {
    let plan = Plan::new(seed);
    let history = History::default();
    let shop = Shop { history: history.clone(), seed, now: || turmoil::sim_elapsed().unwrap_or_default() };
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(END)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(plan.latency)
        .fail_rate(plan.loss)
        .repair_rate(0.2)
        .enable_random_order()
        .build();
    let clock = SimulatedClock::default();
    let mut server = Server::new(shop.clone(), protection).with_room(plan.room).traced(trace.clone());
    if let Keeps::Remote(fault) = keeps {
        server = server.with_remote_store(fault, clock.clone(), LEASE);
    }
    sim.host(SERVER, {
        let server = server.clone();
        move || server.clone().serve()
    });
    for name in CLIENTS {
        let (shop, lives, hasty) = (shop.clone(), Arc::new(AtomicU64::new(0)), plan.hasty);
        sim.host(name, move || {
            let life = lives.fetch_add(1, Ordering::Relaxed);
            let client = Client { name: name.to_owned(), shop: shop.clone() };
            async move {
                client.work(life, hasty).await;
                Ok(())
            }
        });
    }
    sim.client("audit", audit(shop.clone()));

    let mut steps = plan.steps.iter().peekable();
    let mut calm = false;
    loop {
        while let Some(step) = steps.next_if(|step| step.at <= sim.elapsed()) {
            let event = step.action.act(&mut sim);
            history.write(sim.elapsed(), event);
        }
        if !calm && CALM <= sim.elapsed() {
            calm = true;
            sim.set_fail_rate(0.0);
            sim.set_max_message_latency(Duration::from_millis(50));
            CLIENTS.iter().for_each(|client| heal(&sim, client));
            history.write(sim.elapsed(), Event::Calm);
        }
        if step(&mut sim, &clock) {
            break;
        }
    }
    // The other clients finish, too, and after them whatever those who hung up left behind.
    let mut settled = sim.elapsed() + LONGEST_BODY;
    while sim.elapsed() < settled {
        step(&mut sim, &clock);
        if CLIENTS.iter().any(|client| sim.is_host_running(*client)) {
            settled = sim.elapsed() + LONGEST_BODY;
        }
    }
    sim.client(LAST_LOOK, last_look(shop));
    while !step(&mut sim, &clock) {}
    if protection == Protection::Idempotent && keeps == Keeps::InProcess {
        let (idempotency, store) = server.engine();
        let usage = Event::Usage { entries: store.usage().entries, executions: idempotency.executions() };
        history.write(sim.elapsed(), usage);
    }
    (plan, history.lines())
}

/// Simulates one more tick, and returns whether all clients that come to an end have done so.
fn step(sim: &mut Sim<'_>, clock: &SimulatedClock) -> bool {
    clock.set(sim.elapsed());
    sim.step().expect("the simulation continues")
}

/// Everything that any client wants.
fn orders(seed: u64) -> BTreeSet<Order> {
    CLIENTS.iter().flat_map(|client| script(seed, client)).collect()
}

/// Asks again for everything that any client wanted, twice, when all the others have finished.
async fn audit(shop: Shop) -> turmoil::Result {
    tokio::time::sleep(AUDIT).await;
    let orders = orders(shop.seed);
    let client = Client { name: "audit".to_owned(), shop };
    for _ in 0..2 {
        join_all(orders.iter().map(|order| client.ask(order, super::BOUNDS.response * 2))).await;
    }
    Ok(())
}

/// Asks for each key once more, one after the other, when no handler runs and a lease has passed since the last fault.
async fn last_look(shop: Shop) -> turmoil::Result {
    let orders = orders(shop.seed);
    let client = Client { name: LAST_LOOK.to_owned(), shop };
    for order in &orders {
        client.ask(order, super::BOUNDS.response * 2).await;
    }
    Ok(())
}

//! Shutting down under load: clients hang up, the server stops taking requests, and `drain` waits for the handlers that run
//! on without a client.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idem_axum::Idempotency;
use idem_proofs::history::{Event, History, Line, SERVER, keep};
use idem_proofs::invariants::check;
use idem_proofs::network::{BOUNDS, Client, Protection, Server, Shop, identity, listen, script};
use tokio::time::{sleep, sleep_until, timeout};
use turmoil::Sim;

const SEEDS: u64 = 20;
const AUDIT: &str = "audit";
const CLIENTS: [&str; 6] = ["anna", "ben", "carla", "dora", "emil", "fritz"];
/// The process is told to end.
const SIGNAL: Duration = Duration::from_millis(2500);
/// The last clients hang up.
const GONE: Duration = Duration::from_millis(2600);
/// The drained engine is mounted once more, to see what it has recorded.
const AGAIN: Duration = Duration::from_millis(6500);
const END: Duration = Duration::from_secs(30);

/// How the process ends after the server has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Drain,
    /// As if `with_graceful_shutdown` were enough.
    NoDrain,
    /// `timeout(_, drain())`.
    Timeout,
    /// `select!` between `drain()` and the next signal.
    SecondSignal,
    /// A timeout, and then another try without.
    TimeoutThenDrain,
}

/// Waits as this ending says, and for how many executions it says it did not.
async fn end(ending: Ending, idempotency: &Idempotency) -> usize {
    const SHORT: Duration = Duration::from_millis(100);
    match ending {
        Ending::Drain => idempotency.drain().await,
        Ending::NoDrain => return 0,
        Ending::Timeout => drop(timeout(SHORT, idempotency.drain()).await),
        Ending::SecondSignal => tokio::select! {
            biased;
            () = idempotency.drain() => {}
            () = sleep(SHORT) => {}
        },
        Ending::TimeoutThenDrain => {
            drop(timeout(SHORT, idempotency.drain()).await);
            idempotency.drain().await;
        }
    }
    idempotency.executions()
}

struct Outcome {
    lines: Vec<Line>,
    /// How many handlers ran when the server had stopped.
    left_by_the_server: usize,
}

impl Outcome {
    fn abandoned(&self) -> usize {
        let abandoned =
            |line: &Line| if let Event::Drained { abandoned } = line.event { Some(abandoned) } else { None };
        self.lines.iter().find_map(abandoned).expect("the shutdown came to its end")
    }

    fn violations(&self) -> Vec<String> {
        check(&self.lines, BOUNDS).iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn assert_good(&self, name: &str) {
        let violations = self.violations();
        if !violations.is_empty() {
            let path = keep(name, &self.lines).expect("the history is kept");
            panic!("{name}, its history in {}: {violations:#?}", path.display());
        }
    }
}

/// Serves the clients until the signal, and shuts down.
fn shut_down(seed: u64, ending: Ending) -> Outcome {
    let history = History::default();
    let shop = Shop { history: history.clone(), seed, now: || turmoil::sim_elapsed().unwrap_or_default() };
    let left = Arc::new(Mutex::new(0));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(END)
        .tick_duration(Duration::from_millis(5))
        .max_message_latency(Duration::from_millis(30))
        .build();
    let server = Server::new(shop.clone(), Protection::Idempotent);
    sim.host(SERVER, {
        let (server, left) = (server.clone(), left.clone());
        move || process(server.clone(), ending, left.clone())
    });
    for name in CLIENTS {
        let client = Client { name: name.to_owned(), shop: shop.clone() };
        sim.client(name, async move {
            drop(timeout(GONE, client.work(0, true)).await);
            Ok(())
        });
    }
    // A process that abandons executions exits, and cannot be asked afterwards.
    let survives = matches!(ending, Ending::Drain | Ending::TimeoutThenDrain);
    if survives {
        sim.client(AUDIT, audit(shop));
    }
    run(&mut sim, &history);
    if survives {
        let (idempotency, store) = server.engine();
        let usage = Event::Usage { entries: store.usage().entries, executions: idempotency.executions() };
        history.write(sim.elapsed(), usage);
    }
    let mut lines = history.lines();
    if matches!(ending, Ending::Timeout | Ending::SecondSignal) {
        // The process has exited here; the simulated host only stops at the end of the tick.
        let exit = lines.iter().position(|line| matches!(line.event, Event::Drained { .. }));
        lines.truncate(exit.map_or(lines.len(), |exit| exit + 1));
    }
    let left_by_the_server = *left.lock().unwrap();
    Outcome { lines, left_by_the_server }
}

fn run(sim: &mut Sim<'_>, history: &History) {
    sim.run().expect("the simulation ends");
    while !history.lines().iter().any(|line| matches!(line.event, Event::Drained { .. })) {
        sim.step().expect("the simulation continues");
    }
}

/// What `main` of a server is.
async fn process(server: Server, ending: Ending, left: Arc<Mutex<usize>>) -> turmoil::Result {
    let begun = tokio::time::Instant::now();
    let idempotency = server.restart();
    let shop = server.shop.clone();
    let app = shop.clone().app(server.protection, &idempotency);
    axum::serve(listen().await?, app.clone()).with_graceful_shutdown(sleep(SIGNAL)).await?;
    *left.lock().unwrap() = idempotency.executions();
    let abandoned = end(ending, &idempotency).await;
    shop.history.write((shop.now)(), Event::Drained { abandoned });
    match ending {
        Ending::Timeout | Ending::SecondSignal => return Ok(()),
        Ending::Drain | Ending::NoDrain | Ending::TimeoutThenDrain => {}
    }
    sleep_until(begun + AGAIN).await;
    axum::serve(listen().await?, app).await?;
    Ok(())
}

/// Asks again for everything that ran.
async fn audit(shop: Shop) -> turmoil::Result {
    sleep(AGAIN + Duration::from_secs(1)).await;
    let ran: BTreeSet<_> = shop.history.lines().into_iter().filter_map(started).collect();
    let orders: BTreeSet<_> = CLIENTS.iter().flat_map(|client| script(shop.seed, client)).collect();
    let client = Client { name: AUDIT.to_owned(), shop };
    for order in orders {
        if ran.contains(&identity(order.path, order.tenant, &order.key, &order.body)) {
            client.ask(&order, Duration::from_secs(1)).await;
        }
    }
    Ok(())
}

fn started(line: Line) -> Option<idem_proofs::history::RequestIdentity> {
    if let Event::Start { identity, .. } = line.event { Some(identity) } else { None }
}

/// How often the audit got a replay.
fn replays_to_the_audit(lines: &[Line]) -> usize {
    let mut audits = BTreeSet::new();
    let replayed = lines.iter().filter(|line| match &line.event {
        Event::Req { id, client, .. } if client == AUDIT => {
            audits.insert(*id);
            false
        }
        Event::Resp { id, replayed: true, .. } => audits.contains(id),
        _ => false,
    });
    replayed.count()
}

#[test]
fn drain_loses_nothing() {
    let (mut without_a_client, mut replays) = (0, 0);
    for seed in 0..SEEDS {
        let outcome = shut_down(seed, Ending::Drain);
        outcome.assert_good(&format!("drain-{seed}"));
        assert_eq!(outcome.abandoned(), 0, "seed {seed}");
        let handlers = outcome.lines.iter().filter(|line| matches!(line.event, Event::Start { .. })).count();
        assert_eq!(
            replays_to_the_audit(&outcome.lines),
            handlers,
            "seed {seed}: every handler that started is replayed"
        );
        without_a_client += outcome.left_by_the_server;
        replays += handlers;
    }
    println!("{without_a_client} of {replays} handlers ran when the server had stopped; all are recorded");
    assert!(without_a_client > 10, "the server left hardly any body behind: {without_a_client}");
}

#[test]
fn control_a_graceful_shutdown_alone_leaves_handlers_behind() {
    let seeds = (0..SEEDS).map(|seed| shut_down(seed, Ending::NoDrain));
    let left =
        seeds.filter(|outcome| outcome.violations().iter().any(|violation| violation.starts_with("I26"))).count();
    println!("{left} of {SEEDS} shutdowns left handlers behind");
    assert!(left > 0);
}

#[test]
fn a_timeout_or_a_second_signal_ends_drain_and_executions_says_how_many_are_abandoned() {
    for ending in [Ending::Timeout, Ending::SecondSignal] {
        let mut abandoned = 0;
        for seed in 0..SEEDS {
            let outcome = shut_down(seed, ending);
            outcome.assert_good(&format!("{ending:?}-{seed}"));
            abandoned += outcome.abandoned();
        }
        println!("{ending:?}: {abandoned} abandoned");
        assert!(abandoned > 0, "{ending:?}: nothing was abandoned");
    }
}

#[test]
fn a_drain_that_was_cut_short_can_be_taken_up_again() {
    for seed in 0..SEEDS {
        let outcome = shut_down(seed, Ending::TimeoutThenDrain);
        outcome.assert_good(&format!("again-{seed}"));
        assert_eq!(outcome.abandoned(), 0, "seed {seed}");
    }
}

//! Three processes, 64 clients, and a killer of one process after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::trace;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::cluster::client::{Client, Reply};
use crate::cluster::effects;
use crate::cluster::findings::{Findings, Operation};
use crate::cluster::processes::{Process, Service};
use crate::cluster::round_robin::RoundRobin;
use crate::cluster::transactions::DATABASE_FAILED;
use idem_testkit::dice::Dice;

/// How many processes the service has.
pub const PROCESSES: usize = 3;
/// How many clients it has.
pub const CLIENTS: usize = 64;
/// How long a client tries. Longer than any lease, and than a process is down.
const TIMEOUT: Duration = Duration::from_secs(60);

/// When the next process is killed.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// When so much time has passed since the last one was started again.
    Every(Duration),
    /// When clients are through with this many more operations.
    After(usize),
}

/// Starts the service, lets clients do this many operations at `path`, kills processes meanwhile, and says what came of it.
///
/// # Panics
/// If a process does not start.
pub async fn run(service: &Service, path: &'static str, operations: usize, kill: Kill) -> Findings {
    let began = Instant::now();
    let mut processes: Vec<Process> = (0..PROCESSES).map(|_| service.start()).collect();
    let proxy = RoundRobin::over(processes.iter().map(Process::port)).await;
    let next = Arc::new(AtomicUsize::new(0));
    let through = watch::Sender::new(0);
    let clients = (0..CLIENTS).map(|_| {
        let (client, next, through) = (Client::new(proxy.port()), Arc::clone(&next), through.clone());
        tokio::spawn(operate(client, path, operations, next, through))
    });
    let mut clients = join_all(clients.collect::<Vec<_>>());
    let mut kills = 0;
    let done = loop {
        tokio::select! {
            done = &mut clients => break done,
            () = due(kill, through.subscribe()) => {}
        }
        replace_one(service, &mut processes, &proxy).await;
        kills += 1;
    };
    let operations: Vec<_> = done.into_iter().flat_map(|client| client.expect("no client panics")).collect();
    // The last look may run a handler for a key that is free.
    let (lines, took) = (effects::read(service.effects()), began.elapsed());
    let keys = operations.iter().map(|operation| operation.key.clone()).collect();
    let unsettled = last_look(proxy.port(), path, keys, service.lease).await;
    drop(processes);
    let trace = trace::read(&service.trace()).expect("processes have left a trace");
    Findings { operations, lines, trace, unsettled, kills, took }
}

/// Asks for each key when nothing goes wrong any more. One lease later each is recorded, free or reported unknown; returns those
/// that are not.
async fn last_look(port: u16, path: &'static str, keys: Vec<String>, lease: Duration) -> Vec<(String, String)> {
    let end = Instant::now() + lease;
    let mut unsettled = Vec::new();
    let mut client = Client::new(port);
    for key in keys {
        loop {
            let is_last = Instant::now() > end;
            let got = match client.ask(path, &key, "").await {
                Ok(Reply::Response { .. }) => break,
                Ok(reply) if reply.is_refusal("idempotency_outcome_unknown") => break,
                Ok(other) => format!("{other:?}"),
                Err(error) => error.to_string(),
            };
            if is_last {
                unsettled.push((key, got));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    unsettled
}

/// Resolves when a process is to be killed.
async fn due(kill: Kill, mut through: watch::Receiver<usize>) {
    match kill {
        Kill::Every(time) => sleep(time).await,
        Kill::After(more) => {
            let until = *through.borrow() + more;
            // May never come to that: then the clients are through, and so is the run.
            let _ = through.wait_for(|&through| through >= until).await;
        }
    }
}

/// Kills a process, and starts another one in its place. Clients continue meanwhile, in tasks of their own.
async fn replace_one(service: &Service, processes: &mut [Process], proxy: &RoundRobin) {
    let place = usize::try_from(Dice::unseeded().within(0..=PROCESSES as u64 - 1)).unwrap_or_default();
    processes[place].kill();
    let service = service.clone();
    let started = tokio::task::spawn_blocking(move || service.start()).await.expect("a process is started again");
    proxy.replace(place, started.port());
    processes[place] = started;
}

/// One client: takes the next operation until there are no more.
async fn operate(
    mut client: Client,
    path: &'static str,
    operations: usize,
    next: Arc<AtomicUsize>,
    through: watch::Sender<usize>,
) -> Vec<Operation> {
    let mut done = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= operations {
            return done;
        }
        done.push(operation(&mut client, path, format!("order-{number}")).await);
        through.send_modify(|through| *through += 1);
    }
}

/// One operation, from the first request to the last retry.
async fn operation(client: &mut Client, path: &str, key: String) -> Operation {
    let began = Instant::now();
    let mut operation = Operation::new(key);
    // An operation that got its response is sent again now and then, as by a client that lost the response.
    let mut curious = Dice::unseeded().within(0..=2);
    while began.elapsed() < TIMEOUT {
        if Dice::unseeded().within(0..=7) == 0 {
            operation.hang_ups += 1;
            let _ = client.hang_up(path, &operation.key).await;
            continue;
        }
        operation.requests += 1;
        let reply = client.ask(path, &operation.key, "").await;
        match reply {
            Ok(Reply::Response { execution, replayed }) => {
                operation.replays += usize::from(replayed);
                operation.responses.push(execution);
                if curious == 0 {
                    return operation;
                }
                curious -= 1;
            }
            Ok(reply) if reply.is_refusal("idempotency_outcome_unknown") => {
                operation.unknown = true;
                if curious == 0 {
                    return operation;
                }
                curious -= 1;
            }
            Ok(reply) if reply.is_refusal("idempotency_key_locked") => operation.locked += 1,
            Ok(reply) if reply.is_refusal("idempotency_store_unavailable") => operation.unavailable += 1,
            Ok(reply) if reply.is_refusal(DATABASE_FAILED) => operation.unavailable += 1,
            Ok(other) => operation.surprises.push(format!("{other:?}")),
            Err(_) => operation.broken += 1,
        }
        // Clients do not retry at the same moment, and not at once.
        sleep(Duration::from_millis(5) + Dice::unseeded().millis(0..=50)).await;
    }
    operation
}

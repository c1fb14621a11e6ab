//! Mixed traffic over a real server: what it leaves behind, and whether memory grows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::stream::unfold;
use idem_axum::{Idempotency, IdempotencyLayer, MemoryStore, Unrecorded, idempotent};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::load::client::Client;
use crate::load::process::resident;

/// As many as the clients keep alive at [`PACE`], so that the store is full at times and most requests find room.
const MAX_ENTRIES: usize = 285;
const CLIENTS: u64 = 16;
/// How often a client sends, late turns made up for: how full the store gets must not depend on how fast the machine is.
const PACE: Duration = Duration::from_millis(10);
/// How often memory is looked at in the whole time.
const SAMPLES: u32 = 60;
/// How long what is left behind may take to go: the longest TTL, and some rounds of the janitor.
const SETTLES: Duration = Duration::from_secs(20);

#[idempotent(ttl = "1s")]
async fn order(body: String) -> String {
    sleep(Duration::from_millis(1)).await;
    body
}

#[idempotent(ttl = "200ms", in_flight = wait("2s"))]
async fn slow(body: String) -> String {
    sleep(Duration::from_millis(3)).await;
    body
}

#[idempotent(ttl = "100ms")]
async fn faulty() -> &'static str {
    tokio::task::yield_now().await;
    // As a panic does, but without a message for each.
    std::panic::resume_unwind(Box::new("the handler panics"))
}

#[idempotent(ttl = "100ms", in_flight = wait("2s"))]
async fn stream() -> Response {
    let frames = unfold(0, |frame| async move {
        sleep(Duration::from_millis(1)).await;
        (frame < 5).then_some((Ok::<_, std::convert::Infallible>("frame "), frame + 1))
    });
    Body::from_stream(frames).into_response()
}

#[idempotent]
async fn released() -> impl IntoResponse {
    tokio::task::yield_now().await;
    (Unrecorded, "once more, please")
}

/// What is reported of a handler that panicked.
pub const PANICKED: &str = "500 idempotency_handler_panicked";

/// The endpoints of the soak.
pub const PATHS: [&str; 5] = ["/orders", "/slow", "/faulty", "/streams", "/released"];

fn app(idempotency: &Idempotency) -> Router {
    Router::new()
        .route("/orders", post(order))
        .route("/slow", post(slow))
        .route("/faulty", post(faulty))
        .route("/streams", post(stream))
        .route("/released", post(released))
        .layer(IdempotencyLayer::new(idempotency.clone()))
}

/// How often each thing happened.
pub(crate) type Tally = BTreeMap<String, u64>;

/// What a soak found.
#[derive(Debug)]
pub struct Findings {
    tally: Tally,
    /// Time and memory.
    samples: Vec<(f64, f64)>,
    /// What should be zero at the end.
    left: [(&'static str, usize); 6],
}

/// Soaks a server for this long.
///
/// # Panics
/// If there is no port or no runtime to be had.
#[allow(clippy::unwrap_used, reason = "a soak that cannot continue stops")]
pub fn soak(duration: Duration) -> Findings {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = MemoryStore::builder().max_entries(MAX_ENTRIES).build();
    let idempotency = Idempotency::new(store.clone());
    let (tally, samples) = runtime.block_on(traffic(&idempotency, duration));
    let tasks = || runtime.metrics().num_alive_tasks();
    let deadline = Instant::now() + SETTLES;
    while Instant::now() < deadline && (store.usage().entries > 0 || tasks() > 0) {
        runtime.block_on(async { sleep(Duration::from_millis(50)).await });
    }
    let usage = store.usage();
    let left = [
        ("claims, with their locks", usage.in_flight),
        ("records", usage.completed),
        ("entries", usage.entries),
        ("bytes", usage.bytes),
        ("executions", idempotency.executions()),
        ("tasks, waiters included", tasks()),
    ];
    Findings { tally, samples, left }
}

#[allow(clippy::unwrap_used, reason = "a soak that cannot continue stops")]
async fn traffic(idempotency: &Idempotency, duration: Duration) -> (Tally, Vec<(f64, f64)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, app(idempotency)).with_graceful_shutdown(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());
    let (over, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::new())));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (over, tally) = (Arc::clone(&over), Arc::clone(&tally));
            tokio::spawn(async move {
                let mut client = Client::new(address, number);
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let heard = client.turn().await;
                    *tally.lock().unwrap_or_else(PoisonError::into_inner).entry(heard).or_default() += 1;
                }
            })
        })
        .collect();
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while begun.elapsed() < duration {
        sleep(duration / SAMPLES).await;
        samples.push((begun.elapsed().as_secs_f64(), resident() as f64));
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    drop(stop);
    serving.await.unwrap().unwrap();
    idempotency.drain().await;
    (std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner)), samples)
}

impl Findings {
    /// By how many bytes memory grew after the first third of the time, by the line that fits best.
    pub fn growth(&self) -> f64 {
        let warm = &self.samples[self.samples.len() / 3..];
        let count = warm.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| warm.iter().map(of).sum::<f64>() / count;
        let (time, memory) = (mean(|sample| sample.0), mean(|sample| sample.1));
        let together: f64 = warm.iter().map(|sample| (sample.0 - time) * (sample.1 - memory)).sum();
        let spread: f64 = warm.iter().map(|sample| (sample.0 - time).powi(2)).sum();
        let span = warm.last().map_or(0.0, |last| last.0 - warm[0].0);
        if spread > 0.0 { together / spread * span } else { 0.0 }
    }

    /// How often something was heard whose name begins like this.
    pub fn heard(&self, what: &str) -> u64 {
        self.tally.iter().filter(|(name, _)| name.starts_with(what)).map(|(_, times)| times).sum()
    }

    /// What is wrong: something is left, memory grew by more than `growth` bytes, a request got no response, or one of
    /// these was never heard.
    pub fn faults(&self, growth: f64, kinds: &[&str]) -> Vec<String> {
        let mut faults: Vec<_> =
            self.left.iter().filter(|(_, left)| *left > 0).map(|(what, left)| format!("{what}: {left} left")).collect();
        if self.growth() > growth {
            faults.push(format!("memory grew by {:.1} MiB", self.growth() / 1_048_576.0));
        }
        faults.extend(kinds.iter().filter(|kind| self.heard(kind) == 0).map(|kind| format!("never heard: {kind}")));
        // A client without a response would be a broken promise, too.
        let broken = self.tally.iter().filter(|(what, _)| what.starts_with("broken"));
        faults.extend(broken.map(|(what, times)| format!("{times} times {what}")));
        faults
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.tally.values().sum::<u64>().max(1) as f64;
        for (what, times) in &self.tally {
            writeln!(f, "{times:10}  {:5.1} %  {what}", *times as f64 / all * 100.0)?;
        }
        writeln!(f)?;
        for (time, memory) in self.samples.iter().step_by(self.samples.len().div_ceil(10).max(1)) {
            writeln!(f, "{time:8.0} s  {:8.1} MiB resident", memory / 1_048_576.0)?;
        }
        writeln!(f, "memory grew by {:.2} MiB after the first third", self.growth() / 1_048_576.0)?;
        self.left.iter().try_for_each(|(what, left)| writeln!(f, "{left:10}  {what} left"))
    }
}

//! Waiting for the end of somebody else's claim: a bounded poll, which messages cut short.
//!
//! Nothing depends on a message: it may be lost, and the right to subscribe may be missing.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use redis::{RedisResult, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout, timeout_at};

use crate::link::{Heard, Link};
use crate::wire::{self, Name};

/// The pauses of the poll: short at first, for bodies that end soon, and then longer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);
/// How often the poll looks before the engine looks for itself: it may be that the lease is over.
const LOOKS: u32 = 6;
/// How long the subscription stays when nobody waits.
const LINGER: Duration = Duration::from_secs(5);
/// How often a subscription that hears nothing is asked whether it still stands.
const CHECK: Duration = Duration::from_secs(10);
/// The pause before another subscription after one that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// One subscription for all who wait, made when the first one comes.
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    link: Arc<Link>,
    /// The channels that somebody waits for.
    wanted: Mutex<HashMap<String, watch::Sender<()>>>,
    changed: Notify,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, channel: &str) {
        if let Some(waiters) = self.wanted().get(channel) {
            waiters.send_replace(());
        }
    }
}

/// One who waits. Its channel is given up with the last one.
struct Waiter<'a> {
    shared: &'a Shared,
    channel: &'a str,
    woken: Option<watch::Receiver<()>>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut wanted = self.shared.wanted();
        self.woken = None;
        if wanted.get(self.channel).is_some_and(|waiters| waiters.receiver_count() == 0) {
            wanted.remove(self.channel);
            drop(wanted);
            self.shared.changed.notify_one();
        }
    }
}

impl Waiting {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        let shared = Shared { link, wanted: Mutex::default(), changed: Notify::new() };
        Self { shared: Arc::new(shared), listener: Mutex::new(None) }
    }

    /// Resolves when the claim may have ended.
    pub(crate) async fn ended(&self, name: &Name) {
        let channel = name.channel();
        let mut waiter = self.register(&channel);
        let mut pause = FIRST_PAUSE;
        for _ in 0..LOOKS {
            // First the registration, then the look: what ends in between is not missed.
            if !self.in_flight(name).await {
                return;
            }
            let woken = async {
                match &mut waiter.woken {
                    Some(woken) => drop(woken.changed().await),
                    None => pending().await,
                }
            };
            let _ = timeout(jittered(pause), woken).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn register<'a>(&'a self, channel: &'a str) -> Waiter<'a> {
        let woken = {
            let mut wanted = self.shared.wanted();
            let waiters = wanted.entry(channel.to_owned()).or_insert_with(|| watch::Sender::new(()));
            Some(waiters.subscribe())
        };
        self.shared.changed.notify_one();
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if listener.as_ref().is_none_or(JoinHandle::is_finished) {
            *listener = Some(tokio::spawn(listen(Arc::clone(&self.shared))));
        }
        Waiter { shared: &self.shared, channel, woken }
    }

    /// Whether there is a claim; also where that cannot be found out, so that the poll goes on.
    async fn in_flight(&self, name: &Name) -> bool {
        let mut look = cmd("GETRANGE");
        look.arg(&name.0).arg(0).arg(1);
        match self.shared.link.send(&look, self.shared.link.deadline()).await {
            Ok(Heard { answer: Value::BulkString(start), .. }) => wire::CLAIM_STARTS.contains(&&start[..]),
            _ => true,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let listener = self.listener.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listener.take() {
            listener.abort();
        }
    }
}

/// Subscribes to what is wanted, for as long as something is.
async fn listen(shared: Arc<Shared>) {
    loop {
        if let Err(error) = subscribe(&shared).await {
            tracing::debug!(%error, "no messages from Redis for now; those who wait look for themselves");
            sleep(AFTER_FAILURE).await;
        }
        if shared.wanted().is_empty() {
            return;
        }
    }
}

async fn subscribe(shared: &Shared) -> RedisResult<()> {
    let (mut sink, mut messages) = in_time(shared, shared.link.client().get_async_pubsub()).await?.split();
    let mut subscribed: Vec<String> = Vec::new();
    loop {
        let wanted: Vec<String> = shared.wanted().keys().cloned().collect();
        let (stay, gone): (Vec<_>, Vec<_>) =
            subscribed.into_iter().partition(|channel| shared.wanted().contains_key(channel));
        let new: Vec<_> = wanted.into_iter().filter(|channel| !stay.contains(channel)).collect();
        if !gone.is_empty() {
            in_time(shared, sink.unsubscribe(&gone)).await?;
        }
        if !new.is_empty() {
            in_time(shared, sink.subscribe(&new)).await?;
            // Those who looked before the subscription stood look once more.
            new.iter().for_each(|channel| shared.wake(channel));
        }
        subscribed = [stay, new].concat();
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => shared.wake(message.get_channel_name()),
                    None => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                },
                () = shared.changed.notified() => break,
                () = sleep(LINGER), if subscribed.is_empty() => return Ok(()),
                () = sleep(CHECK), if !subscribed.is_empty() => in_time(shared, sink.ping::<Value>()).await.map(drop)?,
            }
        }
    }
}

/// A dead connection may not answer, and not end either.
async fn in_time<T>(shared: &Shared, step: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout_at(shared.link.deadline(), step).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Between three quarters of `pause` and all of it, so that many who wait do not look all at once.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    // Without random numbers all look at once, which works as well.
    let _ = getrandom::fill(&mut random);
    pause - pause * u32::from(random[0]) / 1024
}

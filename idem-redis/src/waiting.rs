//! Waiting for claims to end: one poll for each key that is waited for, which messages cut short.
//!
//! Nothing depends on a message: it may be lost, and the user may lack the right to subscribe. The requests that wait for one key
//! send nothing themselves.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use idem_runtime::StorageKey;
use idem_runtime::remote::{Listener, jitter};
use redis::{RedisResult, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::client::Client;
use crate::inspect::decode;
use crate::value::Decoded;

/// The pauses of the poll: short at first, for handlers that end soon, and then longer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(640);
/// How long the subscription is kept when no one waits.
const LINGER: Duration = Duration::from_secs(5);
/// How often the connection of a silent subscription is checked.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The pause before the next subscription after one that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// All who wait in this process. Its work ends with the store.
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    listener: Listener,
}

struct Shared {
    client: Arc<Client>,
    state: Mutex<Subscriptions>,
    /// The subscription has something to change.
    changed: Notify,
}

#[derive(Default)]
struct Subscriptions {
    awaited: HashMap<StorageKey, Arc<Awaited>>,
    /// The keys that someone has begun, or ceased, to wait for since the subscription was last changed.
    changes: HashSet<StorageKey>,
}

/// A key that is waited for.
struct Awaited {
    /// Tells all who wait that the claim may have ended. Its value is when the poll has begun to look.
    ended: watch::Sender<Instant>,
    /// Asks the poll to look at once.
    look: Notify,
}

impl Waiting {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        let shared = Shared { client, state: Mutex::default(), changed: Notify::new() };
        Self { shared: Arc::new(shared), listener: Listener::default() }
    }

    /// Resolves when the claim may have ended, or its lease has expired.
    pub(crate) async fn ended(&self, key: &StorageKey) {
        let mut ended = self.shared.register(key);
        if self.shared.client.subscribes() {
            self.listener.ensure_running(|| Arc::clone(&self.shared).listen());
        }
        // An error says that the poll has ended with its runtime.
        while timeout(self.shared.longest_round(), ended.changed()).await.is_err() {
            // The runtime of the poll may stand still. Then this one asks, and the next to wait starts another poll.
            if self.shared.forget_stalled(key, *ended.borrow()) {
                return;
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Subscriptions> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns for how long a poll looks and pauses at most.
    fn longest_round(&self) -> Duration {
        self.client.timeout + 2 * MAX_PAUSE
    }

    /// Returns whether a poll that has begun to look at this time has stalled. Forgets the poll of the key if it has.
    fn forget_stalled(&self, key: &StorageKey, looked: Instant) -> bool {
        let has_stalled = |looked: Instant| looked.elapsed() >= self.longest_round();
        let mut state = self.state();
        if state.awaited.get(key).is_some_and(|awaited| has_stalled(*awaited.ended.borrow())) {
            state.awaited.remove(key);
            state.changes.insert(*key);
            self.changed.notify_one();
        }
        has_stalled(looked)
    }

    /// Starts the poll of the key unless it is running. If it is, it looks once more: the claim may have ended before this request
    /// came.
    fn register(self: &Arc<Self>, key: &StorageKey) -> watch::Receiver<Instant> {
        let mut state = self.state();
        match state.awaited.entry(*key) {
            Entry::Occupied(known) => {
                known.get().look.notify_one();
                known.get().ended.subscribe()
            }
            Entry::Vacant(new) => {
                let (ended, receiver) = watch::channel(Instant::now());
                let awaited = Arc::clone(new.insert(Arc::new(Awaited { ended, look: Notify::new() })));
                state.changes.insert(*key);
                self.changed.notify_one();
                // A runtime that shuts down drops the poll at once, which takes the lock.
                drop(state);
                tokio::spawn(Poll { shared: Arc::downgrade(self), key: *key, awaited }.run());
                receiver
            }
        }
    }

    /// Returns whether there is a claim whose lease has not expired. `true` also if that is unknown, so that the poll continues.
    async fn is_claimed(&self, key: &StorageKey) -> bool {
        let name = self.client.name(key);
        let Ok(found) = self.client.peek(&name, self.client.deadline()).await else { return true };
        let Some((value, left)) = found else { return false };
        matches!(decode(&name, &value, left), Ok(Decoded::Claim(stored)) if !stored.has_expired(left))
    }

    /// Subscribes to the channels of all keys that are waited for, as long as there are any.
    async fn listen(self: Arc<Self>) {
        loop {
            if let Err(error) = self.subscribe().await {
                tracing::debug!(%error, "could not subscribe to messages of Redis; waiters poll");
                sleep(RETRY_PAUSE).await;
            }
            if self.state().awaited.is_empty() {
                return;
            }
        }
    }

    async fn subscribe(&self) -> RedisResult<()> {
        let Some(subscriber) = self.client.subscriber() else {
            return Err(std::io::Error::from(std::io::ErrorKind::NotConnected).into());
        };
        let (mut sink, mut messages) = self.in_time(subscriber.get_async_pubsub()).await?.split();
        let mut subscribed: HashMap<String, StorageKey> = HashMap::new();
        {
            let mut state = self.state();
            state.changes = state.awaited.keys().copied().collect();
        }
        loop {
            let (mut new, mut gone) = (HashMap::new(), Vec::new());
            {
                let mut state = self.state();
                for key in std::mem::take(&mut state.changes) {
                    let channel = self.client.name(&key).channel();
                    match (state.awaited.contains_key(&key), subscribed.contains_key(&channel)) {
                        (true, false) => drop(new.insert(channel, key)),
                        (false, true) => gone.push(channel),
                        _ => {}
                    }
                }
            }
            if !gone.is_empty() {
                self.in_time(sink.unsubscribe(&gone)).await?;
                for channel in &gone {
                    subscribed.remove(channel);
                }
            }
            if !new.is_empty() {
                self.in_time(sink.subscribe(&new.keys().collect::<Vec<_>>())).await?;
                // A message that came before was missed.
                new.values().for_each(|key| self.tell(key, |awaited| awaited.look.notify_one()));
                subscribed.extend(new);
            }
            loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some(message) => {
                            if let Some(key) = subscribed.get(message.get_channel_name()) {
                                self.tell(key, |awaited| awaited.ended.send_replace(Instant::now()));
                            }
                        }
                        None => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                    },
                    () = self.changed.notified() => break,
                    () = sleep(LINGER), if subscribed.is_empty() => return Ok(()),
                    () = sleep(PING_INTERVAL), if !subscribed.is_empty() => {
                        self.in_time(sink.ping::<Value>()).await.map(drop)?;
                    }
                }
            }
        }
    }

    fn tell<T>(&self, key: &StorageKey, tell: impl FnOnce(&Awaited) -> T) {
        if let Some(awaited) = self.state().awaited.get(key) {
            tell(awaited);
        }
    }

    /// A dead connection may neither reply nor end.
    async fn in_time<T>(&self, step: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match timeout_at(self.client.deadline(), step).await {
            Ok(result) => result,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

/// The poll of one key. It runs as long as someone waits for the key, and the store lives.
struct Poll {
    shared: Weak<Shared>,
    key: StorageKey,
    awaited: Arc<Awaited>,
}

impl Poll {
    async fn run(self) {
        let Self { shared, key, awaited } = &self;
        let mut pause = FIRST_PAUSE;
        while let Some(shared) = shared.upgrade() {
            if self.has_ended(&shared) {
                return;
            }
            awaited.ended.send_if_modified(|looked| {
                *looked = Instant::now();
                false
            });
            if !shared.is_claimed(key).await {
                awaited.ended.send_replace(Instant::now());
            }
            drop(shared);
            tokio::select! {
                () = sleep(jitter(pause)) => pause = (pause * 2).min(MAX_PAUSE),
                () = awaited.look.notified() => {}
                () = awaited.ended.closed() => {}
            }
        }
    }

    /// Forgets the key if no one waits for it.
    fn has_ended(&self, shared: &Shared) -> bool {
        let mut state = shared.state();
        let has_ended = self.awaited.ended.receiver_count() == 0;
        if has_ended {
            self.forget(&mut state);
            shared.changed.notify_one();
        }
        has_ended
    }

    fn forget(&self, state: &mut Subscriptions) {
        if state.awaited.get(&self.key).is_some_and(|awaited| Arc::ptr_eq(awaited, &self.awaited)) {
            state.awaited.remove(&self.key);
            state.changes.insert(self.key);
        }
    }
}

/// If the runtime of the poll ends, those who wait are woken, and the next one starts another poll.
impl Drop for Poll {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            self.forget(&mut shared.state());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use futures_util::FutureExt;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::config::Durability;
    use crate::link::Place;

    const KEY: StorageKey = StorageKey::from_bytes([1; 32]);

    /// Runs `check` in a thread, with the waiters of a cluster whose nodes are not known. It may hang.
    fn in_thread(check: impl FnOnce(Runtime, Waiting) + Send + 'static) {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let client = redis::Client::open("redis://localhost").unwrap();
            let place = Place::Cluster(Box::new(client), Vec::new());
            let client = Client::new(place, "idem".into(), Durability::None, Duration::from_secs(1));
            check(Builder::new_current_thread().enable_all().build().unwrap(), Waiting::new(Arc::new(client)));
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(20)).expect("it hangs");
    }

    #[test]
    fn without_a_node_to_subscribe_to_a_waiter_does_not_block_the_thread() {
        in_thread(|runtime, waiting| {
            let ended = async { timeout(Duration::from_millis(50), waiting.ended(&KEY)).await };
            runtime.block_on(ended).unwrap_err();
        });
    }

    #[test]
    fn a_waiter_in_a_runtime_that_has_shut_down_is_woken() {
        in_thread(|runtime, waiting| {
            let handle = runtime.handle().clone();
            drop(runtime);
            let _entered = handle.enter();
            waiting.ended(&KEY).now_or_never().unwrap();
        });
    }
}

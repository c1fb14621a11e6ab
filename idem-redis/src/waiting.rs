//! Waiting for claims to end: one poll for each key that is waited for, which messages cut short.
//!
//! Nothing depends on a message: it may be lost, and the user may lack the right to subscribe.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use idem_runtime::StorageKey;
use idem_runtime::remote::{Listener, Waiters};
use redis::{RedisResult, Value};
use tokio::time::{sleep, timeout_at};

use crate::client::Client;
use crate::inspect::decode;
use crate::value::Decoded;

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
    waiters: Waiters,
}

impl Waiting {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { shared: Arc::new(Shared { client, waiters: Waiters::default() }), listener: Listener::default() }
    }

    /// Resolves when the claim may have ended, or its lease has expired.
    pub(crate) async fn ended(&self, key: &StorageKey) {
        let Shared { client, waiters } = &*self.shared;
        let ask = || {
            if client.subscribes() {
                self.listener.ensure_running(|| Arc::clone(&self.shared).listen());
            }
            self.shared.lease_left(key)
        };
        waiters.ended(key, client.timeout, ask).await;
    }
}

impl Shared {
    /// Returns the time that is left of the lease of a claim in flight. If Redis cannot be asked, the poll continues.
    async fn lease_left(&self, key: &StorageKey) -> Option<Duration> {
        let name = self.client.name(key);
        let Ok(found) = self.client.peek(&name, self.client.deadline()).await else { return Some(Duration::MAX) };
        let (value, left) = found?;
        match decode(&name, &value, left) {
            // A moment more, since Redis rounds down.
            Ok(Decoded::Claim(stored)) if !stored.has_expired(left) => {
                Some(Duration::from_millis(left.abs_diff(stored.ttl) + 1))
            }
            _ => None,
        }
    }

    /// Subscribes to the channels of all keys that are waited for, as long as there are any.
    async fn listen(self: Arc<Self>) {
        loop {
            if let Err(error) = self.subscribe().await {
                tracing::debug!(%error, "could not subscribe to messages of Redis; waiters poll");
                sleep(RETRY_PAUSE).await;
            }
            if self.waiters.is_empty() {
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
        let (mut changes, mut changed) = (self.waiters.changes(), Vec::<(StorageKey, bool)>::new());
        loop {
            let (mut new, mut gone) = (HashMap::new(), Vec::new());
            for (key, is_awaited) in changed {
                let channel = self.client.name(&key).channel();
                if !is_awaited {
                    gone.extend(subscribed.remove_entry(&channel).map(|(channel, _)| channel));
                } else if !subscribed.contains_key(&channel) {
                    new.insert(channel, key);
                }
            }
            if !gone.is_empty() {
                self.in_time(sink.unsubscribe(&gone)).await?;
            }
            if !new.is_empty() {
                self.in_time(sink.subscribe(&new.keys().collect::<Vec<_>>())).await?;
                // A message that came before was missed.
                new.values().for_each(|key| self.waiters.ask(key));
                subscribed.extend(new);
            }
            changed = loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some(message) => {
                            if let Some(key) = subscribed.get(message.get_channel_name()) {
                                self.waiters.wake(key);
                            }
                        }
                        None => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                    },
                    changed = changes.next() => break changed,
                    () = sleep(LINGER), if subscribed.is_empty() => return Ok(()),
                    () = sleep(PING_INTERVAL), if !subscribed.is_empty() => {
                        self.in_time(sink.ping::<Value>()).await.map(drop)?;
                    }
                }
            };
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;
    use crate::config::Durability;
    use crate::link::Place;

    const KEY: StorageKey = StorageKey::from_bytes([1; 32]);

    /// In a thread, since it may hang.
    #[test]
    fn without_a_node_to_subscribe_to_a_waiter_does_not_block_the_thread() {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let client = redis::Client::open("redis://localhost").unwrap();
            let place = Place::Cluster(Box::new(client), Vec::new());
            let client = Client::new(place, "idem".into(), Durability::None, Duration::from_secs(1));
            let waiting = Waiting::new(Arc::new(client));
            let ended = async { timeout(Duration::from_millis(50), waiting.ended(&KEY)).await };
            Builder::new_current_thread().enable_all().build().unwrap().block_on(ended).unwrap_err();
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(20)).expect("it hangs");
    }
}

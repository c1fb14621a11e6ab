//! Waiting for claims to end: a bounded poll, which messages cut short.
//!
//! Nothing depends on a message: it may be lost, and the user may lack the right to subscribe.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use idem_runtime::StorageKey;
use idem_runtime::remote::{Listener, Waiters, jitter};
use redis::{RedisResult, Value, cmd};
use tokio::time::{sleep, timeout, timeout_at};

use crate::client::Client;
use crate::connection::Reply;
use crate::value::{CLAIM, Name};

/// The pauses of the poll: short at first, for handlers that end soon, and then longer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(640);
/// How often the poll looks before the engine looks: the lease may have expired.
const MAX_LOOKS: u32 = 6;
/// How long the subscription is kept when no one waits.
const LINGER: Duration = Duration::from_secs(5);
/// How often the connection of a silent subscription is checked.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The pause before the next subscription after one that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// One subscription for all who wait, made when the first one comes. It ends with the store.
pub(crate) struct Subscription {
    client: Arc<Client>,
    waiters: Arc<Waiters>,
    listener: Listener,
}

impl Subscription {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, waiters: Arc::default(), listener: Listener::default() }
    }

    /// Resolves when the claim may have ended.
    pub(crate) async fn ended(&self, key: &StorageKey) {
        let name = self.client.name(key);
        let mut waiter = self.waiters.register(key);
        self.listener.ensure_running(|| listen(Arc::clone(&self.client), Arc::clone(&self.waiters)));
        let mut pause = FIRST_PAUSE;
        for _ in 0..MAX_LOOKS {
            // After the registration, so that no end is missed.
            if !self.is_claimed(&name).await {
                return;
            }
            let _ = timeout(jitter(pause), waiter.woken()).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Returns whether there is a claim. `true` also if that is unknown, so that the poll goes on.
    async fn is_claimed(&self, name: &Name) -> bool {
        let mut start = cmd("GETRANGE");
        start.arg(&name.0).arg(0).arg(CLAIM.len() - 1);
        match self.client.connection.send(&start, self.client.connection.deadline()).await {
            Ok(Reply { value: Value::BulkString(start), .. }) => start == CLAIM,
            _ => true,
        }
    }
}

/// Subscribes to the channels of all keys that are waited for, as long as there are any.
async fn listen(client: Arc<Client>, waiters: Arc<Waiters>) {
    loop {
        if let Err(error) = subscribe(&client, &waiters).await {
            tracing::debug!(%error, "could not subscribe to messages of Redis; waiters poll");
            sleep(RETRY_PAUSE).await;
        }
        if waiters.is_empty() {
            return;
        }
    }
}

async fn subscribe(client: &Client, waiters: &Waiters) -> RedisResult<()> {
    let (mut sink, mut messages) = in_time(client, client.connection.client().get_async_pubsub()).await?.split();
    let mut subscribed: HashMap<String, StorageKey> = HashMap::new();
    loop {
        let awaited: HashMap<_, _> = waiters.keys().into_iter().map(|key| (client.name(&key).channel(), key)).collect();
        let gone: Vec<_> = subscribed.keys().filter(|channel| !awaited.contains_key(*channel)).cloned().collect();
        let new: Vec<_> = awaited.keys().filter(|channel| !subscribed.contains_key(*channel)).cloned().collect();
        if !gone.is_empty() {
            in_time(client, sink.unsubscribe(&gone)).await?;
        }
        if !new.is_empty() {
            in_time(client, sink.subscribe(&new)).await?;
            // Those who looked before the subscription was made look once more.
            new.iter().filter_map(|channel| awaited.get(channel)).for_each(|key| waiters.wake(key));
        }
        subscribed = awaited;
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => {
                        if let Some(key) = subscribed.get(message.get_channel_name()) {
                            waiters.wake(key);
                        }
                    }
                    None => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                },
                () = waiters.changed() => break,
                () = sleep(LINGER), if subscribed.is_empty() => return Ok(()),
                () = sleep(PING_INTERVAL), if !subscribed.is_empty() => {
                    in_time(client, sink.ping::<Value>()).await.map(drop)?;
                }
            }
        }
    }
}

/// A dead connection may neither reply nor end.
async fn in_time<T>(client: &Client, step: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout_at(client.connection.deadline(), step).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

//! Counting replays, if the store was told to: behind the requests, none of which waits for it.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idem_runtime::StorageKey;
use idem_runtime::remote::OwnerToken;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::dialect::{Dialect, Value};
use crate::errors::Step;
use crate::execute::{Executor, key_value};

/// How many records may have replays that are not counted yet. Replays of others go uncounted meanwhile.
const MAX_PENDING: usize = 10_000;

pub(crate) struct ReplayCounter<D: Dialect> {
    shared: Arc<Shared<D>>,
    /// Ends with the store.
    tasks: Mutex<JoinSet<()>>,
}

struct Shared<D: Dialect> {
    executor: Arc<Executor<D>>,
    pending: Mutex<PendingCounts>,
}

#[derive(Default)]
struct PendingCounts {
    replays: Replays,
    /// A task is counting; at most one, so that requests get at the connections.
    is_counting: bool,
}

/// By the record's key and owner.
type Replays = HashMap<(StorageKey, OwnerToken), i64>;

impl<D: Dialect> ReplayCounter<D> {
    pub(crate) fn new(executor: Arc<Executor<D>>) -> Self {
        Self { shared: Arc::new(Shared { executor, pending: Mutex::default() }), tasks: Mutex::default() }
    }

    /// Counts a replay of the record that `owner` left under `key`, in the background.
    pub(crate) fn count(&self, key: StorageKey, owner: OwnerToken) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut pending = self.shared.pending();
        if pending.replays.len() < MAX_PENDING || pending.replays.contains_key(&(key, owner)) {
            *pending.replays.entry((key, owner)).or_default() += 1;
        }
        if mem::replace(&mut pending.is_counting, true) {
            return;
        }
        drop(pending);
        let counting = Counting { shared: Arc::clone(&self.shared), done: false };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(counting.run(), &runtime);
    }
}

impl<D: Dialect> Shared<D> {
    fn pending(&self) -> MutexGuard<'_, PendingCounts> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that counts. However it ends, another can start.
struct Counting<D: Dialect> {
    shared: Arc<Shared<D>>,
    done: bool,
}

impl<D: Dialect> Counting<D> {
    /// Returns what is to be counted. If that is nothing, the task is done in the same step.
    fn next(&mut self) -> Option<Replays> {
        let mut pending = self.shared.pending();
        let replays = mem::take(&mut pending.replays);
        if replays.is_empty() {
            pending.is_counting = false;
            self.done = true;
            return None;
        }
        Some(replays)
    }

    async fn run(mut self) {
        while let Some(replays) = self.next() {
            let executor = &self.shared.executor;
            for ((key, owner), replays) in replays {
                let values = [key_value(&key), Value::Bytes(owner.as_bytes()), Value::Number(replays)];
                if let Err(error) = executor.execute(Step::Count, &executor.statements.count, &values).await {
                    tracing::debug!(%key, %error, "could not count replays");
                }
            }
        }
    }
}

impl<D: Dialect> Drop for Counting<D> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.pending().is_counting = false;
        }
    }
}

//! Counting replays, where that is wanted: behind the requests, none of which waits for it.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idem_runtime::StorageKey;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::core::key_value;
use crate::database::{Asker, Database, Value};
use crate::errors::Step;

/// How many records may wait for being counted. Replays of others go uncounted meanwhile.
const MOST: usize = 10_000;

pub(crate) struct Counter<D: Database> {
    desk: Arc<Desk<D>>,
    /// Ends with the store.
    tasks: Mutex<JoinSet<()>>,
}

struct Desk<D: Database> {
    asker: Arc<Asker<D>>,
    /// `key, owner, replays`: a row if done.
    count: Arc<str>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    /// Replays by the record's key and owner.
    replays: HashMap<(StorageKey, [u8; 16]), i64>,
    /// A task is at work, one at most, so that requests get at the connections.
    at_work: bool,
}

impl<D: Database> Counter<D> {
    pub(crate) fn new(asker: Arc<Asker<D>>, count: Arc<str>) -> Self {
        Self { desk: Arc::new(Desk { asker, count, pending: Mutex::default() }), tasks: Mutex::default() }
    }

    /// Counts a replay of the record that `owner` left under `key`, some time.
    pub(crate) fn count(&self, key: StorageKey, owner: [u8; 16]) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut pending = self.desk.pending();
        if pending.replays.len() < MOST || pending.replays.contains_key(&(key, owner)) {
            *pending.replays.entry((key, owner)).or_default() += 1;
        }
        if mem::replace(&mut pending.at_work, true) {
            return;
        }
        drop(pending);
        let at_work = AtWork { desk: Arc::clone(&self.desk), done: false };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(at_work.work(), &runtime);
    }
}

impl<D: Database> Desk<D> {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that counts. However it ends, another can start.
struct AtWork<D: Database> {
    desk: Arc<Desk<D>>,
    done: bool,
}

impl<D: Database> AtWork<D> {
    /// What is to be counted; `None` where nothing is, and then the work is done in the same step.
    fn next(&mut self) -> Option<HashMap<(StorageKey, [u8; 16]), i64>> {
        let mut pending = self.desk.pending();
        let replays = mem::take(&mut pending.replays);
        if replays.is_empty() {
            pending.at_work = false;
            self.done = true;
            return None;
        }
        Some(replays)
    }

    async fn work(mut self) {
        while let Some(replays) = self.next() {
            for ((key, owner), replays) in replays {
                let values = [key_value(&key), Value::Bytes(&owner), Value::Number(replays)];
                if let Err(error) = self.desk.asker.ask(Step::Count, &self.desk.count, &values).await {
                    tracing::debug!(%key, %error, "replays go uncounted");
                }
            }
        }
    }
}

impl<D: Database> Drop for AtWork<D> {
    fn drop(&mut self) {
        if !self.done {
            self.desk.pending().at_work = false;
        }
    }
}

//! Waiting for the end of a claim: by asking the database now and then, and sooner where somebody says that it is time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idem_runtime::StorageKey;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::core::{Core, key_value};
use crate::database::{Database, jittered};
use crate::errors::{DatabaseError, Problem, Step};

/// The pause before the database is asked again; it doubles up to [`LONGEST_PAUSE`], which is how late a waiter is at
/// most where nobody tells it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Who waits in this process, and for what.
#[derive(Default)]
pub(crate) struct Waiters {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: HashMap<StorageKey, watch::Sender<()>>,
    /// A task passes on what the database tells.
    #[cfg(feature = "postgres")]
    listening: bool,
}

impl Waiters {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing that is said about `key` is missed.
    fn wait(self: &Arc<Self>, key: &StorageKey) -> Waiter {
        let told = self.state().keys.entry(*key).or_insert_with(|| watch::Sender::new(())).subscribe();
        Waiter { waiters: Arc::clone(self), key: *key, told: Some(told) }
    }

    /// The claim under `key` may have ended.
    pub(crate) fn wake(&self, key: &StorageKey) {
        if let Some(sender) = self.state().keys.get(key) {
            let _ = sender.send(());
        }
    }

    /// Any claim may have ended: something that was said may have been missed.
    #[cfg(feature = "postgres")]
    pub(crate) fn wake_all(&self) {
        for sender in self.state().keys.values() {
            let _ = sender.send(());
        }
    }

    /// Whether the caller must start to listen: nobody does. Then it says so by dropping what it gets.
    #[cfg(feature = "postgres")]
    pub(crate) fn listen(self: &Arc<Self>) -> Option<Listening> {
        let mut state = self.state();
        if std::mem::replace(&mut state.listening, true) {
            return None;
        }
        Some(Listening { waiters: Arc::clone(self) })
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn nobody_waits(&self) -> bool {
        self.state().keys.is_empty()
    }
}

/// Held by the task that listens, so that another one is started when it ends, even with its runtime.
#[cfg(feature = "postgres")]
pub(crate) struct Listening {
    pub(crate) waiters: Arc<Waiters>,
}

#[cfg(feature = "postgres")]
impl Drop for Listening {
    fn drop(&mut self) {
        self.waiters.state().listening = false;
    }
}

struct Waiter {
    waiters: Arc<Waiters>,
    key: StorageKey,
    told: Option<watch::Receiver<()>>,
}

impl Waiter {
    async fn told(&mut self) {
        match &mut self.told {
            // The sender lives as long as a receiver does.
            Some(told) => drop(told.changed().await),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.waiters.state();
        self.told = None;
        if state.keys.get(&self.key).is_some_and(|sender| sender.receiver_count() == 0) {
            state.keys.remove(&self.key);
        }
    }
}

impl<D: Database> Core<D> {
    /// Resolves when the claim under `key` has ended, or its lease. Asks again and again, and is only sooner when told.
    pub(crate) async fn ended(&self, key: &StorageKey) {
        let mut waiter = self.waiters.wait(key);
        let mut sql = &self.sql.wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let left = match self.lease_left(key, sql).await {
                Ok(Some(left)) => left,
                Ok(None) => return,
                Err(error) => {
                    // `begin` will say what the matter is. Not at once, or many waiters would keep the database busy with it.
                    tracing::debug!(%key, %error, "the end of a claim could not be awaited");
                    return sleep(jittered(LONGEST_PAUSE)).await;
                }
            };
            sql = &self.sql.still;
            let _ = timeout(jittered(pause).min(left), waiter.told()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn lease_left(&self, key: &StorageKey, sql: &Arc<str>) -> Result<Option<Duration>, DatabaseError> {
        let asker = self.reader.as_ref().unwrap_or(&self.asker);
        let asked = asker.ask(Step::Wait, sql, &[key_value(key)]).await?;
        let Some(row) = asked.rows.first() else { return Ok(None) };
        let left =
            D::number(row).map_err(|error| DatabaseError { step: Step::Wait, problem: Problem::Refused(error) })?;
        // At least a moment: the lease may end within the unit that is counted.
        Ok(Some(Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1))))
    }
}

//! Claims that may have been granted to nobody: `begin` was sent, and its answer was never heard. Their bodies have not run,
//! so they are given back; otherwise their keys would be in flight for a lease, and then their outcome unknown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idem_runtime::StorageKey;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::core::key_value;
use crate::database::{Asker, Database, Doubt, Value};
use crate::errors::Step;
use crate::waiting::Waiters;

/// How many are followed up at once. Beyond that, their leases end them.
const MOST: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For how long one is followed up at most, however long its lease is.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Orphans<D: Database> {
    desk: Arc<Desk<D>>,
    /// Ends with the store.
    tasks: Mutex<JoinSet<()>>,
    /// How many are being followed up.
    count: Arc<watch::Sender<usize>>,
}

struct Desk<D: Database> {
    asker: Arc<Asker<D>>,
    /// `key, owner`: a row if done.
    release: Arc<str>,
    waiters: Arc<Waiters>,
    /// One at a time asks, so that requests need not wait for connections until many have had their turn.
    turn: Semaphore,
}

impl<D: Database> Orphans<D> {
    pub(crate) fn new(asker: Arc<Asker<D>>, release: Arc<str>, waiters: Arc<Waiters>) -> Self {
        let desk = Desk { asker, release, waiters, turn: Semaphore::new(1) };
        Self { desk: Arc::new(desk), tasks: Mutex::default(), count: Arc::default() }
    }

    /// When it is dropped while there is doubt, gives the claim back.
    pub(crate) fn guard<'a>(&'a self, key: &'a StorageKey, owner: [u8; 16], lease: Duration) -> Guard<'a, D> {
        Guard { orphans: self, key, owner, lease, doubt: Doubt::default(), armed: true }
    }

    fn follow_up(&self, key: StorageKey, owner: [u8; 16], lease: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MOST {
            let counted = Counted::new(&self.count);
            let desk = Arc::clone(&self.desk);
            let given_back = async move {
                desk.give_back(&key, &owner, lease).await;
                drop(counted);
            };
            tasks.spawn_on(given_back, &runtime);
        }
    }

    /// Resolves when none is left.
    pub(crate) async fn drained(&self) {
        // An error says that nobody counts any more.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl<D: Database> Desk<D> {
    /// Gives a claim back. It may not be there yet: what was sent on another connection can arrive late.
    async fn give_back(&self, key: &StorageKey, owner: &[u8; 16], lease: Duration) {
        let end = Instant::now() + lease.min(LONGEST);
        let mut pause = FIRST_PAUSE;
        while Instant::now() < end {
            let Ok(Ok(turn)) = timeout_at(end, self.turn.acquire()).await else { return };
            let values = [key_value(key), Value::Bytes(owner)];
            let asked = self.asker.ask(Step::Release, &self.release, &values).await;
            drop(turn);
            // A row is answered once: if the answer was lost, the next ones say that nothing is there.
            if asked.is_ok_and(|asked| !asked.rows.is_empty()) {
                return self.waiters.wake(key);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// One that is being followed up, until it is dropped.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    fn new(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

pub(crate) struct Guard<'a, D: Database> {
    orphans: &'a Orphans<D>,
    key: &'a StorageKey,
    owner: [u8; 16],
    lease: Duration,
    doubt: Doubt,
    armed: bool,
}

impl<D: Database> Guard<'_, D> {
    /// What the statement that claims has to keep right.
    pub(crate) fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// It is known what became of the claim.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl<D: Database> Drop for Guard<'_, D> {
    fn drop(&mut self) {
        if self.armed && self.doubt.is_left() {
            self.orphans.follow_up(*self.key, self.owner, self.lease);
        }
    }
}

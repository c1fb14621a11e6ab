//! Claims that may have been granted to nobody: `begin` was sent, and its answer was never heard. Their bodies have not run,
//! so they are given back; otherwise their keys would be in flight for a lease, and then their outcome unknown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::link::Link;
use crate::scripts::Scripts;
use crate::store::{Said, run};
use crate::wire::{CLAIM_STARTS, Name};

/// How many are followed up at once. Beyond that, their leases end them.
const MOST: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Not longer, since a drain waits for the next look.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// For how long one is followed up at most, however long its lease is.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) struct Orphans {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    /// Ends with the store.
    tasks: Mutex<JoinSet<()>>,
    /// How many are being followed up.
    count: Arc<watch::Sender<usize>>,
}

impl Orphans {
    pub(crate) fn new(link: Arc<Link>, scripts: Arc<Scripts>) -> Self {
        Self { link, scripts, tasks: Mutex::default(), count: Arc::default() }
    }

    /// Gives the claim back when it is dropped, unless it is disarmed.
    pub(crate) fn guard<'a>(&'a self, name: &'a Name, claim: &'a Bytes, lease: Duration) -> Guard<'a> {
        Guard { orphans: self, name, claim, lease, armed: true }
    }

    fn follow_up(&self, name: Name, claim: Bytes, lease: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MOST {
            let counted = Counted::new(&self.count);
            let (link, scripts) = (Arc::clone(&self.link), Arc::clone(&self.scripts));
            let given_back = async move {
                give_back(&link, &scripts, &name, &claim, lease).await;
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

/// Gives a claim back. It may not be there yet: what was sent on another connection can arrive late.
async fn give_back(link: &Link, scripts: &Scripts, name: &Name, claim: &[u8], lease: Duration) {
    let end = Instant::now() + lease.min(LONGEST);
    let (channel, mut pause) = (name.channel(), FIRST_PAUSE);
    while Instant::now() < end {
        let heard = run(link, &scripts.release, name, &[claim, channel.as_bytes()], link.deadline()).await;
        match heard.and_then(|heard| Said::read(heard.answer)) {
            Ok(Said::Absent) | Err(_) => {}
            // It may still arrive once that one is released.
            Ok(Said::Stands(found)) if CLAIM_STARTS.iter().any(|start| found.starts_with(start)) => {}
            Ok(_) => return,
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
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

pub(crate) struct Guard<'a> {
    orphans: &'a Orphans,
    name: &'a Name,
    claim: &'a Bytes,
    lease: Duration,
    armed: bool,
}

impl Guard<'_> {
    /// It is known what became of the claim.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.orphans.follow_up(self.name.clone(), self.claim.clone(), self.lease);
        }
    }
}

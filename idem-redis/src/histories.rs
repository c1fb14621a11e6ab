//! Random histories of calls, compared with the reference model that every store is compared with. A server is real, and its
//! clock is a key that the test sets: then a lease of half a minute is over at its very tick.
//!
//! `PROPTEST_CASES` sets the number of histories, for the long form.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use idem_proofs::reference::steps::histories;
use idem_proofs::reference::{Claims, Model, Profile, Step, drive, engine};
use idem_runtime::{Begin, Claim, Clock, Duties, Fingerprint, Record, StorageKey, Store, StoreError};
use idem_servers::redis::Redis;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::Pipeline;
use tokio::runtime::Handle;

use crate::scripts::Scripts;
use crate::{RedisClaim, RedisStore};

/// The server's own expiry stays out of it: it only reclaims room.
const CLOCK: &str = "
local function now() return tonumber(redis.call('GET', 'clock')) end
local function milliseconds() return 100000000 end
";

/// A tick of a history is a nanosecond, and one of the store a microsecond.
const SCALE: u32 = 1000;

#[derive(Clone)]
struct Timed {
    store: RedisStore,
    /// The clock, and what it showed at first: nanoseconds since 1970 are more than a Lua number holds.
    clock: Arc<OnceLock<(Arc<dyn Clock>, u64)>>,
    /// Where the connection lives: other threads than those of the history.
    elsewhere: Handle,
}

struct TimedClaim {
    claim: RedisClaim,
    store: Timed,
}

impl Timed {
    /// Ends before it returns. A history of the engine counts on it that a claim ends in a few turns of its own thread.
    fn at_once<T: Send + 'static>(&self, step: impl Future<Output = T> + Send + 'static) -> T {
        let (send, receive) = channel();
        self.elsewhere.spawn(async move { send.send(step.await) });
        receive.recv().unwrap()
    }

    fn set_clock(&self) -> Result<(), StoreError> {
        let (clock, start) = self.clock.get().unwrap();
        let mut set = Pipeline::new();
        set.cmd("SET").arg("clock").arg(clock.now().as_nanos() - start);
        let link = Arc::clone(&self.store.inner.link);
        self.at_once(async move { link.send(&set, link.deadline()).await })?;
        Ok(())
    }
}

impl Store for Timed {
    type Claim = TimedClaim;

    async fn begin(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
    ) -> Result<Begin<TimedClaim>, StoreError> {
        self.set_clock()?;
        let timed = |claim| TimedClaim { claim, store: self.clone() };
        Ok(match self.store.begin(key, fingerprint, lease * SCALE).await? {
            Begin::Claimed(claim) => Begin::Claimed(timed(claim)),
            Begin::Abandoned(claim) => Begin::Abandoned(timed(claim)),
            Begin::InFlight(fingerprint) => Begin::InFlight(fingerprint),
            Begin::Completed(record) => Begin::Completed(record),
        })
    }

    async fn ended(&self, key: &StorageKey) {
        self.store.ended(key).await;
    }

    async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        self.set_clock()?;
        self.store.forget(key).await
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        let _ = self.clock.set((Arc::clone(clock), clock.now().as_nanos()));
        self.store.attach(clock)
    }
}

impl Claim for TimedClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.store.set_clock()?;
        self.claim.renew(lease * SCALE).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.store.set_clock()?;
        self.store.at_once(self.claim.complete(record, ttl * SCALE))
    }

    async fn release(self) -> Result<(), StoreError> {
        self.store.set_clock()?;
        self.store.at_once(self.claim.release())
    }
}

const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: usize::MAX, bytes: None };

fn check<F: Future<Output = Result<(), String>>>(cases: u32, play: impl Fn(Timed, Model, Vec<Step>) -> F) {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { cases };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(Redis::start());
    let played = AtomicUsize::new(0);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&histories(REMOTE, 60), |(model, steps, seen)| {
        // What is beyond the last step seen is thrown away first when a failure is made smaller.
        seen.iter().for_each(|seen| seen.store(steps.len(), Ordering::SeqCst));
        let prefix = format!("history-{}", played.fetch_add(1, Ordering::SeqCst));
        let store = RedisStore::builder(server.url()).prefix(prefix);
        let store = elsewhere.block_on(store.connect_with(Scripts::with_clock(CLOCK))).unwrap();
        let store = Timed { store, clock: Arc::default(), elsewhere: elsewhere.handle().clone() };
        runtime.block_on(play(store, model, steps)).map_err(TestCaseError::fail)
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

#[test]
fn the_redis_store_does_as_the_reference() {
    check(300, |store, model, steps| async move { drive::play(store, model, &steps).await });
}

#[test]
fn the_engine_over_redis_does_as_the_reference() {
    check(100, |store, model, steps| async move { engine::play(store, model, &steps).await });
}

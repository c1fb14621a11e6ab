//! Random histories of calls, compared with the reference model that every store is compared with. A server is real, and its
//! clock is a key that the test sets: then a lease of half a minute is over at its very tick.
//!
//! `PROPTEST_CASES` sets the number of histories, for the long form.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use idem_proofs::reference::steps::histories;
use idem_proofs::reference::{Claims, Model, Profile, drive};
use idem_runtime::{Begin, Claim, Clock, Duties, Fingerprint, Record, StorageKey, Store, StoreError};
use idem_servers::redis::Redis;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::Pipeline;

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
}

struct TimedClaim {
    claim: RedisClaim,
    store: Timed,
}

impl Timed {
    async fn set_clock(&self) -> Result<(), StoreError> {
        let (clock, start) = self.clock.get().unwrap();
        let mut set = Pipeline::new();
        set.cmd("SET").arg("clock").arg(clock.now().as_nanos() - start);
        let link = &self.store.inner.link;
        link.send(&set, link.deadline()).await?;
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
        self.set_clock().await?;
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
        self.set_clock().await?;
        self.store.forget(key).await
    }

    fn attach(&self, clock: &Arc<dyn Clock>) -> Duties {
        let _ = self.clock.set((Arc::clone(clock), clock.now().as_nanos()));
        self.store.attach(clock)
    }
}

impl Claim for TimedClaim {
    async fn renew(&mut self, lease: Duration) -> Result<(), StoreError> {
        self.store.set_clock().await?;
        self.claim.renew(lease * SCALE).await
    }

    async fn complete(self, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.store.set_clock().await?;
        self.claim.complete(record, ttl * SCALE).await
    }

    async fn release(self) -> Result<(), StoreError> {
        self.store.set_clock().await?;
        self.claim.release().await
    }
}

#[test]
fn the_redis_store_does_as_the_reference() {
    const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: usize::MAX };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 300 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Redis::start());
    let played = AtomicUsize::new(0);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&histories(REMOTE, 60), |(model, steps, seen)| {
        // What is beyond the last step seen is thrown away first when a failure is made smaller.
        seen.iter().for_each(|seen| seen.store(steps.len(), Ordering::SeqCst));
        let prefix = format!("history-{}", played.fetch_add(1, Ordering::SeqCst));
        runtime
            .block_on(async {
                let store = RedisStore::builder(server.url()).prefix(prefix).connect_with(Scripts::with_clock(CLOCK));
                let store = Timed { store: store.await.unwrap(), clock: Arc::default() };
                drive::play(store, Model::clone(&model), &steps).await
            })
            .map_err(TestCaseError::fail)
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

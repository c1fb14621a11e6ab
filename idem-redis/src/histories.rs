//! Random histories of calls, compared with the reference model that every store is compared with. The server is real, and so
//! is its clock: instead of letting time pass, a history takes it from what every key has left.
//!
//! `PROPTEST_CASES` sets the number of histories, for the long form.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Record, StorageKey, Store, StoreCapabilities, StoreError,
    StoredEntry,
};
use idem_testkit::intercept::{Hooks, Intercept};
use idem_testkit::redis::Redis;
use idem_testkit::reference::steps::histories;
use idem_testkit::reference::{Claims, Model, Profile, Step, drive, engine};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::cmd;
use tokio::runtime::Handle;

use crate::connection::Reply;
use crate::{RedisClaim, RedisStore};

/// Makes every key older, by as many milliseconds as the history says and some more: so much the steps may have taken.
const PASS: &str = "
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':*')) do
    redis.call('PEXPIRE', key, redis.call('PTTL', key) - ARGV[2] - 5)
end";

/// The ends of leases and records lie on these marks, and a tick beside them.
const MARK: i128 = 10_000_000_000;
/// This many milliseconds of the server are as much as the time between two marks, and as much as a tick of one nanosecond.
/// What a history really takes is less than a tick, and ticks do not add up to a mark.
const MARK_MILLISECONDS: i128 = 10_000_000;
const TICK_MILLISECONDS: i128 = 10_000;

/// No claim expires, as none does in the reference.
const TTL: Duration = Duration::MAX;

/// Milliseconds of the server for nanoseconds of a history.
fn scaled(nanoseconds: u128) -> i128 {
    let nanoseconds = i128::try_from(nanoseconds).unwrap();
    let marks = (nanoseconds + MARK / 2).div_euclid(MARK);
    marks * MARK_MILLISECONDS + (nanoseconds - marks * MARK) * TICK_MILLISECONDS
}

fn stretched(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(scaled(duration.as_nanos())).unwrap())
}

struct Timed {
    store: RedisStore,
    prefix: String,
    /// The clock, and what it showed at first.
    clock: OnceLock<(Arc<dyn Clock>, u64)>,
    /// How much time has passed on the server, in milliseconds.
    passed: Mutex<i128>,
    /// Where the connection lives: other threads than those of the history.
    runtime: Handle,
}

impl Timed {
    /// Ends before it returns. A history of the engine counts on it that a claim ends in a few turns of one thread.
    fn elsewhere<T: Send + 'static>(&self, step: impl Future<Output = T> + Send + 'static) -> T {
        let (send, receive) = channel();
        self.runtime.spawn(async move { send.send(step.await) });
        receive.recv().unwrap()
    }

    fn set_clock(&self) -> Result<(), StoreError> {
        let (clock, start) = self.clock.get().unwrap();
        let passed = scaled(u128::from(clock.now().as_nanos() - start));
        let by = passed - std::mem::replace(&mut *self.passed.lock().unwrap(), passed);
        let mut pass = cmd("EVAL");
        pass.arg(PASS).arg(0).arg(&self.prefix).arg(by.to_string());
        let client = Arc::clone(&self.store.client);
        let (deadline, name) = (client.deadline(), client.name(&StorageKey::from_bytes([0; 32])));
        self.elsewhere(async move { client.send(&name, &pass, deadline).await.and_then(Reply::accepted) })?;
        Ok(())
    }
}

impl Hooks<RedisStore> for Timed {
    async fn begin(
        &self,
        store: &RedisStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<RedisClaim>, StoreError> {
        self.set_clock()?;
        store.begin(key, fingerprint, &BeginOptions::new(stretched(options.lease), TTL)).await
    }

    async fn forget(&self, store: &RedisStore, key: &StorageKey) -> Result<bool, StoreError> {
        self.set_clock()?;
        store.forget(key).await
    }

    async fn inspect(&self, store: &RedisStore, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        self.set_clock()?;
        store.inspect(key).await
    }

    fn attach(&self, store: &RedisStore, clock: &Arc<dyn Clock>) -> StoreCapabilities {
        let _ = self.clock.set((Arc::clone(clock), clock.now().as_nanos()));
        store.attach(clock)
    }

    async fn renew(&self, claim: &mut RedisClaim, lease: Duration) -> Result<(), StoreError> {
        self.set_clock()?;
        claim.renew(stretched(lease)).await
    }

    async fn complete(&self, claim: RedisClaim, record: Record, ttl: Duration) -> Result<(), StoreError> {
        self.set_clock()?;
        self.elsewhere(claim.complete(record, stretched(ttl)))
    }

    async fn release(&self, claim: RedisClaim) -> Result<(), StoreError> {
        self.set_clock()?;
        self.elsewhere(claim.release())
    }
}

const REMOTE: Profile = Profile { claims: Claims::LiveForLease, capacity: usize::MAX, bytes: None };

fn check<F: Future<Output = Result<(), String>>>(
    cases: u32,
    play: impl Fn(Intercept<RedisStore, Timed>, Model, Vec<Step>) -> F,
) {
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
        let store = elsewhere.block_on(RedisStore::builder(server.url()).prefix(&prefix).connect()).unwrap();
        let (clock, passed) = (OnceLock::new(), Mutex::default());
        let timed = Timed { store: store.clone(), prefix, clock, passed, runtime: elsewhere.handle().clone() };
        let store = Intercept::new(store, timed);
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

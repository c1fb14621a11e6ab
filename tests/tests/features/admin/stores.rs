//! What a person confirmed is made, whatever the store is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use idem_axum::{Idempotency, MemoryStore, StorageKey, Store, StoreError, StoredEntry};
use idem_redis::RedisStore;
use idem_testkit::intercept::{Hooks, Intercept};
use idem_testkit::redis::Redis;
use idem_tests::{Setup, post as send};

use super::support_page::{SupportPage, pay};

const KEY: &[(&str, &str)] = &[("key", "k")];

async fn assert_forgotten(idempotency: &Idempotency) {
    let (app, probe) = Setup::mount(idempotency, Router::new().route("/pay", post(pay)));
    let (ask, support) = (send("/pay").key("k"), SupportPage::over(idempotency));
    for run in 1..=5 {
        ask.to(&app).await.assert_ran(200);
        // A replay while the person decides changes nothing of what they decided about.
        let seen = support.seen(KEY, "forget").await;
        assert!(ask.to(&app).await.is_replay());
        let done = support.send(&[KEY, &[("step", "forget-now"), ("seen", &seen)]].concat()).await;
        assert_eq!((done.status, probe.runs()), (200, run), "{}", done.text());
        assert_eq!(support.audits(), ["look_up POST /pay done", "forget POST /pay done"]);
    }
}

#[tokio::test]
async fn an_end_that_the_store_tells_a_little_different_each_time_is_no_other_record() {
    assert_forgotten(&Idempotency::new(Intercept::new(MemoryStore::new(), Jittery::default()))).await;
}

#[tokio::test]
async fn a_record_in_redis_is_forgotten_at_the_first_attempt() {
    let server = Redis::start().await;
    assert_forgotten(&Idempotency::new(RedisStore::connect(server.url()).await.unwrap())).await;
}

/// The store finds out the end of a record from its clock and the time left, so that each look tells another one.
#[derive(Default)]
struct Jittery {
    looks: AtomicU64,
}

impl Hooks<MemoryStore> for Jittery {
    async fn inspect(&self, store: &MemoryStore, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        let mut found = store.inspect(key).await?;
        if let Some(found) = &mut found {
            let jitter = Duration::from_millis(self.looks.fetch_add(1, Relaxed));
            found.expires_at = found.expires_at.map(|at| at.after(jitter));
        }
        Ok(found)
    }
}

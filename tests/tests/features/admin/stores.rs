//! What a person confirmed is made, whatever the store is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use idem_axum::{Idempotency, Key, KeyPage, MemoryStore, Scope, StorageKey, Store, StoreError, StoredEntry};
use idem_redis::RedisStore;
use idem_testkit::intercept::{Hooks, Intercept};
use idem_testkit::redis::Redis;
use idem_tests::{Logs, Reply, Setup, post as send};

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

/// Asks for the key to be taken away from its execution, which keeps it.
async fn assert_kept(revoke: Revoke, text: &str) {
    let store = Intercept::new(MemoryStore::new(), revoke);
    let idempotency = Idempotency::new(store.clone());
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/pay", post(pay)));
    let (ask, support) = (send("/pay").key("k"), SupportPage::over(&idempotency));
    probe.close();
    let (served, hung) = (app.clone(), ask.clone());
    let hung = tokio::spawn(async move { hung.to(&served).await });
    probe.started(1).await;
    let kept = support.change(KEY, "revoke").await;
    assert_eq!(kept.status, 409, "{}", kept.text());
    assert!(kept.text().contains(text) && kept.text().contains("In flight"), "{}", kept.text());
    assert_eq!(support.audits(), ["look_up POST /pay done", "revoke POST /pay refused"]);
    probe.open();
    hung.await.unwrap().assert_ran(200);
    assert!(ask.to(&app).await.is_replay());
}

#[tokio::test]
async fn an_execution_that_keeps_its_key_is_not_said_to_have_changed() {
    let text = "Nothing was changed: this request keeps its key, as one with a database transaction does.";
    assert_kept(Revoke::Keeps, text).await;
}

#[tokio::test]
async fn a_store_that_cannot_revoke_is_not_said_to_have_failed() {
    let text = "Nothing was changed: the store of this service cannot take a key away from its request.";
    assert_kept(Revoke::Cannot, text).await;
}

/// The store does not take a claim away from its owner.
enum Revoke {
    /// It is a transaction.
    Keeps,
    Cannot,
}

impl Hooks<MemoryStore> for Revoke {
    async fn revoke(&self, _: &MemoryStore, _: &StorageKey) -> Result<bool, StoreError> {
        match self {
            Self::Keeps => Ok(false),
            Self::Cannot => Err(StoreError::CannotRevoke),
        }
    }
}

/// The store can be asked once, and not again.
#[derive(Default)]
struct Once(AtomicU64);

impl Hooks<MemoryStore> for Once {
    async fn inspect(&self, store: &MemoryStore, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        if self.0.fetch_add(1, Relaxed) > 0 {
            return Err(StoreError::unavailable("on purpose"));
        }
        store.inspect(key).await
    }
}

#[tokio::test]
async fn a_change_that_was_not_begun_is_said_not_to_be_made() {
    let idempotency = Idempotency::new(Intercept::new(MemoryStore::new(), Once::default()));
    let (app, _) = Setup::mount(&idempotency, Router::new().route("/pay", post(pay)));
    let ask = send("/pay").key("k");
    ask.to(&app).await.assert_ran(200);
    let support = SupportPage::over(&idempotency);
    let failed = support.change(KEY, "forget").await;
    assert_eq!((failed.status, support.audits().pop().as_deref()), (503, Some("forget - failed")));
    assert!(failed.text().contains("Nothing was changed") && !failed.text().contains("not known whether"));
    assert!(ask.to(&app).await.is_replay());
}

/// The store tells the state of a key, until it leaves, and does nothing else.
#[derive(Default)]
struct Leaving(AtomicBool);

impl Hooks<MemoryStore> for Leaving {
    async fn inspect(&self, store: &MemoryStore, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        if self.0.load(Relaxed) {
            return Err(StoreError::unavailable("on purpose"));
        }
        store.inspect(key).await
    }

    async fn inspect_unknown(&self, _: &MemoryStore, _: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, StoreError> {
        Err(StoreError::unavailable("on purpose"))
    }

    async fn forget(&self, _: &MemoryStore, _: &StorageKey) -> Result<bool, StoreError> {
        Err(StoreError::unavailable("on purpose"))
    }
}

#[tokio::test]
async fn why_a_store_failed_is_logged_and_not_shown() {
    let store = Intercept::new(MemoryStore::new(), Leaving::default());
    let idempotency = Idempotency::new(store.clone());
    let (app, _) = Setup::mount(&idempotency, Router::new().route("/pay", post(pay)));
    send("/pay").key("k").to(&app).await.assert_ran(200);
    let support = SupportPage::over(&idempotency);
    let assert_failed = |reply: Reply, logs: &Logs| {
        assert_eq!(reply.status, 503);
        assert!(!reply.text().contains("on purpose"), "{}", reply.text());
        let text = logs.text();
        let errors: Vec<_> = text.lines().filter(|line| line.contains("ERROR")).collect();
        assert!(matches!(&errors[..], [error] if error.contains("cause=\"on purpose\"")), "{text}");
    };
    let (logs, guard) = Logs::capture();
    assert_failed(support.change(KEY, "forget").await, &logs);
    drop(guard);
    let (logs, guard) = Logs::capture();
    assert_failed(support.send(&[("step", "unknown")]).await, &logs);
    drop(guard);
    store.hooks.0.store(true, Relaxed);
    let (logs, _guard) = Logs::capture();
    assert_failed(support.send(KEY).await, &logs);
}

/// A store that is scanned may return a key on two pages.
#[tokio::test]
async fn a_key_on_two_pages_is_listed_once() {
    let idempotency = Idempotency::new(Intercept::new(MemoryStore::new(), Repeats));
    let (app, probe) = Setup::mount(&idempotency, Router::new().route("/pay", post(pay)));
    probe.close();
    let hung = tokio::spawn(async move { send("/pay").key("k").to(&app).await });
    probe.started(1).await;
    assert!(idempotency.revoke(&Scope::GLOBAL, &Key::parse(b"k").unwrap()).await.unwrap());
    let listed = SupportPage::over(&idempotency).json(&[("step", "unknown")]).await.json();
    assert_eq!((listed["unknown"].as_array().unwrap().len(), &listed["next"]), (1, &serde_json::Value::Null));
    probe.open();
    hung.await.unwrap().assert_ran(200);
}

#[tokio::test]
async fn a_list_that_goes_on_from_nowhere_does_not_begin_again() {
    let support = SupportPage::over(&Idempotency::in_memory());
    for from in ["zz", "abc", "+f", "é"] {
        let refused = support.json(&[("step", "unknown"), ("from", from)]).await;
        assert_eq!((refused.status, support.audits().len()), (400, 0), "{from}");
        assert!(support.send(&[("step", "unknown"), ("from", from)]).await.text().contains("list from the start"));
    }
    assert_eq!(support.json(&[("step", "unknown"), ("from", "")]).await.status, 200);
}

struct Repeats;

impl Hooks<MemoryStore> for Repeats {
    async fn inspect_unknown(
        &self,
        store: &MemoryStore,
        from: Option<&Bytes>,
    ) -> Result<KeyPage<StoredEntry>, StoreError> {
        let page = store.inspect_unknown(None).await?;
        Ok(KeyPage::new(page.keys, from.is_none().then(|| Bytes::from_static(b"again"))))
    }
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

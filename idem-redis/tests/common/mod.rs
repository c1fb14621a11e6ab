//! What the tests share.
#![allow(dead_code, reason = "each binary of tests uses some of it")]

#[cfg(feature = "tls")]
pub mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idem_redis::{RedisClaim, RedisStore};
use idem_runtime::{Begin, BeginOptions, Fingerprint, Record, StorageKey, Store, StoreError};
use idem_testkit::proxy::Proxy;
use idem_testkit::redis::Redis;
pub use idem_testkit::wait::{until, within};

/// A lease and a TTL that no test outlives.
pub const LEASE: Duration = Duration::from_secs(30);
pub const TTL: Duration = Duration::from_secs(3600);
/// How long a step may take in tests that let it time out.
pub const TIMEOUT: Duration = Duration::from_millis(400);

pub type Begun = Result<Begin<RedisClaim>, StoreError>;

pub fn key(number: u8) -> StorageKey {
    StorageKey::from_bytes([number; 32])
}

/// The name of a key in Redis.
pub fn name(number: u8) -> String {
    format!("idem:{}", format!("{number:02x}").repeat(32))
}

pub fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

pub fn record(text: &str) -> Record {
    Record::new(fingerprint(1), text.as_bytes().to_vec().into())
}

pub async fn store(server: &Redis) -> RedisStore {
    RedisStore::builder(server.url()).timeout(TIMEOUT).connect().await.unwrap()
}

/// A store that talks to `server` through a proxy.
pub async fn through_proxy(server: &Redis) -> (RedisStore, Proxy) {
    let proxy = Proxy::to(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    (RedisStore::builder(url).timeout(TIMEOUT).connect().await.unwrap(), proxy)
}

pub async fn begin(store: &RedisStore, number: u8) -> Begun {
    store.begin(&key(number), &fingerprint(1), &BeginOptions::new(LEASE, TTL)).await
}

pub async fn claim(store: &RedisStore, number: u8) -> RedisClaim {
    match begin(store, number).await {
        Ok(Begin::Claimed(claim)) => claim,
        begun => panic!("the key is free, but `begin` gave {begun:?}"),
    }
}

/// Begins until the key can be claimed, once an earlier claim was released.
pub async fn claim_in_time(store: &RedisStore, number: u8) -> RedisClaim {
    let mut claimed = None;
    until("the key is free", async || {
        match begin(store, number).await {
            Ok(Begin::Claimed(claim)) => claimed = Some(claim),
            Ok(Begin::InFlight(_)) => within("the end of the claim", store.ended(&key(number))).await,
            // While the server or the network comes back.
            Err(StoreError::Unavailable(_)) => {}
            begun => panic!("the key becomes free, but `begin` gave {begun:?}"),
        }
        claimed.is_some()
    })
    .await;
    claimed.unwrap()
}

/// Waits for the end of a claim as the engine does. `waiting` counts who does.
pub async fn wait(store: RedisStore, number: u8, waiting: Arc<AtomicUsize>) -> Begin<RedisClaim> {
    loop {
        match begin(&store, number).await.unwrap() {
            Begin::InFlight(_) => {
                waiting.fetch_add(1, Ordering::SeqCst);
                store.ended(&key(number)).await;
                waiting.fetch_sub(1, Ordering::SeqCst);
            }
            ended => return ended,
        }
    }
}

/// Waits until the lease of the claim has expired.
pub async fn abandoned(store: &RedisStore) -> RedisClaim {
    let mut found = None;
    until("the lease has expired", async || {
        if let Ok(Begin::Abandoned(claim)) = begin(store, 1).await {
            found = Some(claim);
        }
        found.is_some()
    })
    .await;
    found.unwrap()
}

pub async fn recorded(store: &RedisStore, number: u8) -> Record {
    match begin(store, number).await {
        Ok(Begin::Completed(record)) => record,
        begun => panic!("there is a record, but `begin` gave {begun:?}"),
    }
}

pub fn assert_in_flight(begun: &Begun) {
    assert!(matches!(begun, Ok(Begin::InFlight(found)) if *found == fingerprint(1)), "{begun:?}");
}

/// The source of an error that says that the store is unavailable.
pub fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(source)) => source.to_string(),
        other => panic!("the store is unavailable, but it gave {other:?}"),
    }
}

pub fn unreadable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unreadable(source)) => source.to_string(),
        other => panic!("the value cannot be read, but the store gave {other:?}"),
    }
}

/// The rights of a user, as the front page of the crate documents them.
pub fn documented_rights() -> Vec<&'static str> {
    let page = include_str!("../../src/lib.rs");
    let line = page.lines().find_map(|line| line.strip_prefix("//! ACL SETUSER shop on >password resetchannels "));
    line.expect("the front page documents the rights").split(' ').collect()
}

/// The rights that the front page documents as optional: those in the first column of its table.
pub fn optional_rights() -> Vec<String> {
    let page = include_str!("../../src/lib.rs");
    let (_, table) = page.split_once("//! | right | without it |").expect("a table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("//! |"));
    let rights = rows.flat_map(|row| row.split('`').nth(1).expect("rights").split(' '));
    // As a table needs it.
    rights.map(|right| right.replace("\\|", "|")).collect()
}

/// Makes the user `shop` with these rights and no others.
pub async fn set_user(server: &Redis, rights: &[&str]) {
    let said = server.say(&format!("ACL SETUSER shop reset on >password resetchannels {}", rights.join(" "))).await;
    assert!(said.starts_with("+OK"), "{said}");
}

/// The server as the user `shop` names it.
pub fn user_url(server: &Redis) -> String {
    format!("redis://shop:password@127.0.0.1:{}", server.port())
}

/// Returns how often the server has run a command since `CONFIG RESETSTAT`, in scripts as well.
pub async fn calls(server: &Redis, command: &str) -> u64 {
    let stats = server.say("INFO commandstats").await;
    let found = stats.split_once(&format!("cmdstat_{command}:calls="));
    found.map_or(0, |(_, calls)| calls.split(',').next().unwrap().parse().unwrap())
}

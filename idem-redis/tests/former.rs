//! Values that the former version of the store wrote, and what its processes make of values of this one: during a rolling
//! deployment both are at work. `former/` has the scripts of that version as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

#[allow(unreachable_pub, reason = "a module of each test")]
mod common;

use std::time::Duration;

use common::*;
use idem_redis::RedisStore;
use idem_runtime::{Begin, Claim, Record, Standing, Store, StoreError, Terms};
use idem_servers::redis::Redis;
use redis::aio::MultiplexedConnection;
use redis::{Client, Value, cmd};

const BEGIN: &str =
    concat!(include_str!("former/clock.lua"), include_str!("former/value.lua"), include_str!("former/begin.lua"));
const COMPLETE: &str =
    concat!(include_str!("former/clock.lua"), include_str!("former/value.lua"), include_str!("former/complete.lua"));
const OWNER: [u8; 16] = [7; 16];
const OTHER_OWNER: [u8; 16] = [8; 16];
/// What the former scripts said.
const UNREADABLE: i64 = 0;
const DONE: i64 = 1;
const RECORD: i64 = 4;

/// A process of the former version.
struct Former(MultiplexedConnection);

impl Former {
    async fn new(server: &Redis) -> Self {
        Self(Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap())
    }

    async fn begin(&mut self, owner: [u8; 16], lease: Duration) -> Vec<Value> {
        let mut eval = cmd("EVAL");
        eval.arg(BEGIN).arg(1).arg(name(1)).arg(&owner).arg(fingerprint(1).as_bytes());
        eval.arg(lease.as_micros().to_string()).arg(TTL.as_micros().to_string());
        eval.query_async(&mut self.0).await.unwrap()
    }

    async fn complete(&mut self, owner: [u8; 16]) -> Vec<Value> {
        let mut eval = cmd("EVAL");
        eval.arg(COMPLETE).arg(1).arg(name(1)).arg(&owner).arg(TTL.as_micros().to_string());
        eval.arg(format!("{}:ended", name(1))).arg(&*record("former").seal(&key(1))).arg("0");
        eval.query_async(&mut self.0).await.unwrap()
    }
}

async fn both() -> (Redis, RedisStore, Former) {
    let server = Redis::start().await;
    let (store, former) = (store(&server).await, Former::new(&server).await);
    (server, store, former)
}

#[tokio::test]
async fn a_claim_of_the_former_version_is_in_flight_for_its_lease_and_then_abandoned() {
    let (_server, store, mut former) = both().await;
    assert_eq!(former.begin(OWNER, LEASE).await, [Value::Int(DONE)]);
    assert_in_flight(&begin(&store, 1).await);
    assert!(!store.forget(&key(1)).await.unwrap());
    let other = store.begin_on_terms(&key(1), &fingerprint(2), &Terms::new(LEASE, TTL)).await;
    assert!(matches!(other, Ok(Begin::InFlight(found)) if found == fingerprint(1)), "{other:?}");

    assert_eq!(former.begin(OWNER, Duration::ZERO).await, [Value::Int(DONE)]);
    let mut heir = abandoned(&store).await;
    // Its owner is there after all.
    assert_eq!(former.begin(OWNER, LEASE).await, [Value::Int(DONE)]);
    assert!(matches!(heir.renew(LEASE).await, Err(StoreError::Lost)));
    assert_in_flight(&begin(&store, 1).await);

    assert_eq!(former.begin(OWNER, Duration::ZERO).await, [Value::Int(DONE)]);
    let mut heir = abandoned(&store).await;
    heir.renew(LEASE).await.unwrap();
    heir.renew(2 * LEASE).await.unwrap();
    // Too late: what stands there is not a claim as the former owner knows them.
    assert_eq!(former.complete(OWNER).await, [Value::Int(UNREADABLE)]);
    heir.complete(record("answer"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("answer"));
}

#[tokio::test]
async fn an_abandoned_claim_and_a_record_of_the_former_version_are_forgotten() {
    let (_server, store, mut former) = both().await;
    former.begin(OWNER, Duration::ZERO).await;
    assert!(store.forget(&key(1)).await.unwrap());
    former.begin(OWNER, LEASE).await;
    former.complete(OWNER).await;
    assert!(store.forget(&key(1)).await.unwrap());
    claim(&store, 1).await;
}

#[tokio::test]
async fn a_record_of_the_former_version_is_replayed_and_one_who_waits_for_it_is_woken() {
    let (server, store, mut former) = both().await;
    former.begin(OWNER, LEASE).await;
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.ended(&key(1)).await })
    };
    until("it waits", async || server.say(&format!("PUBSUB NUMSUB {}:ended", name(1))).await.contains(":1\r\n")).await;
    assert!(!waiting.is_finished(), "the claim is in flight");
    assert_eq!(former.complete(OWNER).await, [Value::Int(DONE)]);
    waiting.await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("former"));
}

#[tokio::test]
async fn a_process_of_the_former_version_replays_records_and_refuses_claims_and_leaves_both_as_they_are() {
    let (server, store, mut former) = both().await;
    let claimed = claim(&store, 1).await;
    let dump = async || server.say(&format!("DUMP {}", name(1))).await;
    let before = dump().await;
    assert_eq!(former.begin(OTHER_OWNER, LEASE).await, [Value::Int(UNREADABLE)]);
    assert_eq!(former.complete(OTHER_OWNER).await, [Value::Int(UNREADABLE)]);
    assert_eq!(before, dump().await);
    claimed.complete(record("answer"), TTL).await.unwrap();
    let before = dump().await;
    let said = former.begin(OTHER_OWNER, LEASE).await;
    let [Value::Int(RECORD), Value::BulkString(sealed)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(Record::unseal(&key(1), &sealed.clone().into()).unwrap(), record("answer"));
    assert_eq!(before, dump().await);
}

#[tokio::test]
async fn an_operator_sees_a_claim_and_a_record_of_the_former_version() {
    let (_server, store, mut former) = both().await;
    let inspect = async || store.inspect(&key(1)).await.unwrap().unwrap();
    former.begin(OWNER, LEASE).await;
    let found = inspect().await;
    assert!(matches!(found.standing, Standing::InFlight(found) if found == fingerprint(1)), "{found:?}");
    let (lease, expires) = (found.lease_until.unwrap(), found.expires_at.unwrap());
    let between = expires.since(lease);
    assert!(between > TTL - LEASE - Duration::from_secs(1) && between < TTL, "{between:?}");
    former.begin(OWNER, Duration::ZERO).await;
    assert!(matches!(inspect().await.standing, Standing::Abandoned(found) if found == fingerprint(1)));
    former.complete(OWNER).await;
    assert!(matches!(inspect().await.standing, Standing::Completed(found) if found == record("former")));
}

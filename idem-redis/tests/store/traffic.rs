//! What a step sends and reads: counted by the server, and by a proxy in front of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use idem_redis::RedisStore;
use idem_runtime::{Begin, BeginOptions, Claim, ExecutionInfo, Record, Store};
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::redis::Redis;
use tokio::task::JoinSet;

use crate::common::*;

const RECORD: usize = 1024 * 1024;

/// Bytes that a step of this kind may read: a fingerprint, checksums, and an execution info.
const FEW: usize = 1024;

fn large() -> Record {
    Record::new(fingerprint(1), vec![7; RECORD].into())
}

fn count_from_now(proxy: &Proxy) {
    proxy.set(Direction::ToServer, Fault::None);
    proxy.set(Direction::ToClient, Fault::None);
}

async fn begin_another_request(store: &RedisStore) -> Begun {
    store.begin(&key(1), &fingerprint(2), &BeginOptions::new(LEASE, TTL)).await
}

#[tokio::test]
async fn a_mismatch_reads_the_fingerprint_of_a_large_record_and_not_its_content() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 1).await.complete(large(), TTL).await.unwrap();
    begin_another_request(&store).await.unwrap();
    count_from_now(&proxy);
    server.say("CONFIG RESETSTAT").await;
    let Ok(Begin::Completed(found)) = begin_another_request(&store).await else { panic!("there is a record") };
    assert_eq!(*found.fingerprint(), fingerprint(1));
    assert!(proxy.bytes(Direction::ToClient) < FEW, "{} bytes", proxy.bytes(Direction::ToClient));
    assert_eq!(calls(&server, "evalsha").await, 1);
    assert_eq!(recorded(&store, 1).await, large());
}

#[tokio::test]
async fn a_page_of_unknown_outcomes_takes_three_round_trips() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    for number in 0..50 {
        drop(claim(&store, number).await);
        // As if the owner had been gone for a second.
        let left = TTL.as_millis() - 1000;
        server.say(&format!("PEXPIRE {} {left}", name(number))).await;
    }
    claim(&store, 50).await.complete(large(), TTL).await.unwrap();
    server.say("SCRIPT FLUSH").await;
    count_from_now(&proxy);
    let before = proxy.round_trips();
    let page = store.inspect_unknown(None).await.unwrap();
    assert_eq!((page.keys.len(), page.next), (50, None));
    assert_eq!(proxy.round_trips() - before, 3);
    assert!(proxy.bytes(Direction::ToClient) < 50 * FEW, "{} bytes", proxy.bytes(Direction::ToClient));
}

/// An engine tells a changed policy from another request by the execution info.
#[tokio::test]
async fn a_mismatch_has_the_execution_info_of_the_record() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let info = ExecutionInfo::from_bytes(&[&[1, 0][..], &[5; 8 + 8 + 4 + 8], b"POST /orders"].concat()).unwrap();
    let info = info.to_bytes();
    // As the runtime lays a record out: version, kind, expiry, the two lengths, content and info.
    let lengths = [&u16::try_from(info.len()).unwrap().to_le_bytes()[..], &4u64.to_le_bytes()].concat();
    let bytes = [&[1, 1][..], &[0xff; 8], &lengths, b"text", &info].concat();
    let record = Record::new(fingerprint(1), bytes.into());
    assert!(record.execution_info().is_some(), "the layout is the runtime's");
    claim(&store, 1).await.complete(record.clone(), TTL).await.unwrap();
    let Ok(Begin::Completed(found)) = begin_another_request(&store).await else { panic!("there is a record") };
    assert_eq!(found.execution_info(), record.execution_info());
    assert_eq!(recorded(&store, 1).await, record);
}

#[tokio::test]
async fn a_forget_and_a_lost_claim_read_little_of_a_large_record() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    claimed.try_clone().unwrap().complete(large(), TTL).await.unwrap();
    let reads_little = |what: &str| {
        assert!(proxy.bytes(Direction::ToClient) < FEW, "{what}: {} bytes", proxy.bytes(Direction::ToClient));
    };
    count_from_now(&proxy);
    claimed.try_clone().unwrap().renew(LEASE).await.unwrap_err();
    reads_little("renew");
    count_from_now(&proxy);
    claimed.release().await.unwrap_err();
    reads_little("release");
    count_from_now(&proxy);
    assert!(store.forget(&key(1)).await.unwrap());
    reads_little("forget");
    claim(&store, 1).await;
}

#[tokio::test]
async fn a_refusal_in_flight_is_one_short_round_trip() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let _claimed = claim(&store, 1).await;
    assert_in_flight(&begin(&store, 1).await);
    count_from_now(&proxy);
    server.say("CONFIG RESETSTAT").await;
    assert_in_flight(&begin(&store, 1).await);
    assert_in_flight(&begin_another_request(&store).await);
    assert_eq!(calls(&server, "evalsha").await, 2);
    assert_eq!((calls(&server, "set").await, calls(&server, "eval").await), (0, 0));
    let (sent, read) = (proxy.bytes(Direction::ToServer), proxy.bytes(Direction::ToClient));
    assert!(sent < 2 * 500 && read < 2 * 200, "{sent} bytes were sent, and {read} read");
}

#[tokio::test]
async fn the_waiters_of_one_process_poll_once() {
    const WAITERS: usize = 50;
    let server = Redis::start().await;
    // Without messages, so that only polls are counted.
    server.say("ACL SETUSER default resetchannels").await;
    let (owner, store) = (store(&server).await, store(&server).await);
    let claimed = claim(&owner, 1).await;
    let (mut waiters, waiting) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    for _ in 0..WAITERS {
        waiters.spawn(wait(store.clone(), 1, Arc::clone(&waiting)));
    }
    until("all wait", async || waiting.load(Ordering::SeqCst) == WAITERS).await;
    server.say("CONFIG RESETSTAT").await;
    let start = Instant::now();
    until("the key was looked at twelve times", async || calls(&server, "evalsha").await >= 12).await;
    // The pause doubles up to 640 ms. If each waiter polled, twelve looks would be a matter of milliseconds.
    assert!(start.elapsed() >= Duration::from_millis(1200), "twelve looks in {:?}", start.elapsed());
    claimed.complete(record("response"), TTL).await.unwrap();
    while let Some(found) = waiters.join_next().await {
        assert!(matches!(found.unwrap(), Begin::Completed(found) if found == record("response")));
    }
}

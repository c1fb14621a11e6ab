//! What a step does when the server fails, refuses, or holds what it should not.

use std::time::{Duration, Instant};

use idem_redis::RedisStore;
use idem_runtime::{Claim, Store, StoreError};
use idem_testkit::redis::Redis;

use crate::common::*;

#[tokio::test]
async fn with_an_append_only_file_nothing_is_lost_when_the_server_is_killed_before_any_step() {
    let mut server = Redis::durable().await;
    let store = RedisStore::connect(server.url()).await.unwrap();
    let mut claimed = claim(&store, 1).await;
    server.restart().await;
    assert_in_flight(&begin(&store, 1).await);
    server.restart().await;
    claimed.renew(LEASE).await.unwrap();
    server.restart().await;
    claimed.complete(record("response"), TTL).await.unwrap();
    server.restart().await;
    assert_eq!(recorded(&store, 1).await, record("response"));
    let released = claim(&store, 2).await;
    server.restart().await;
    released.release().await.unwrap();
    server.restart().await;
    assert!(store.forget(&key(1)).await.unwrap());
    server.restart().await;
    claim(&store, 1).await;
    claim(&store, 2).await;
}

#[tokio::test]
async fn while_the_server_is_down_every_step_is_an_error_and_succeeds_afterwards() {
    let mut server = Redis::durable().await;
    let store = store(&server).await;
    let (mut first, second) = (claim(&store, 1).await, claim(&store, 2).await);
    let (first_copy, second_copy) = (first.try_clone().unwrap(), second.try_clone().unwrap());
    server.kill();
    unavailable(begin(&store, 3).await);
    unavailable(first.renew(LEASE).await);
    unavailable(first.complete(record("response"), TTL).await);
    unavailable(second.release().await);
    unavailable(store.forget(&key(1)).await);
    server.restart().await;
    first_copy.complete(record("response"), TTL).await.unwrap();
    second_copy.release().await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    claim(&store, 2).await;
    claim(&store, 3).await;
}

/// The limit that the front page states: a server that keeps nothing on disk forgets everything.
#[tokio::test]
async fn without_a_file_a_restart_forgets_and_the_owner_learns_of_it() {
    let mut server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    server.restart().await;
    assert!(matches!(claimed.complete(record("response"), TTL).await, Err(StoreError::Lost)));
    claim(&store, 1).await;
}

#[tokio::test]
async fn a_server_that_lost_the_scripts_gets_them_again() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let flush = async || assert!(server.say("SCRIPT FLUSH").await.starts_with("+OK"));
    flush().await;
    let mut claimed = claim(&store, 1).await;
    flush().await;
    claimed.renew(LEASE).await.unwrap();
    flush().await;
    claimed.complete(record("response"), TTL).await.unwrap();
    flush().await;
    assert_eq!(recorded(&store, 1).await, record("response"));
    flush().await;
    assert!(store.forget(&key(1)).await.unwrap());
    let claimed = claim(&store, 1).await;
    flush().await;
    claimed.release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_takes_no_writes_refuses_and_keeps_everything() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    claim(&store, 3).await.complete(record("earlier"), TTL).await.unwrap();
    let refuses = async |word: &str| {
        let said = unavailable(begin(&store, 2).await);
        assert!(said.contains(word), "{said}");
        unavailable(copy.try_clone().unwrap().complete(record("response"), TTL).await);
        unavailable(copy.try_clone().unwrap().release().await);
    };
    server.say("CONFIG SET min-replicas-to-write 1").await;
    refuses("NOREPLICAS").await;
    // What is there needs no write to be read.
    assert_eq!(recorded(&store, 3).await, record("earlier"));
    assert_in_flight(&begin(&store, 1).await);
    server.say("CONFIG SET min-replicas-to-write 0").await;
    server.say("REPLICAOF 127.0.0.1 1").await;
    refuses("is a replica").await;
    server.say("REPLICAOF NO ONE").await;
    claimed.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    claim(&store, 2).await;
}

#[tokio::test]
async fn a_stalled_server_is_an_error_in_time_and_steps_succeed_when_it_resumes() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    server.stall();
    let start = Instant::now();
    let said = unavailable(begin(&store, 2).await);
    unavailable(claimed.complete(record("response"), TTL).await);
    assert!(start.elapsed() < 2 * TIMEOUT + Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(said.contains("within"), "{said}");
    server.resume();
    copy.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    // The server has read the `begin` by now. Its claim is unconfirmed, so it does not lock the key for a lease.
    claim_in_time(&store, 2).await;
}

#[tokio::test]
async fn a_full_server_refuses_new_keys_and_serves_old_ones() {
    let server = Redis::start().await;
    let store = store(&server).await;
    claim(&store, 1).await.complete(record("response"), TTL).await.unwrap();
    let (mut second, third) = (claim(&store, 2).await, claim(&store, 3).await);
    server.say("CONFIG SET maxmemory 1mb").await;
    assert!(server.say("SET room 1").await.starts_with("-OOM"), "the server is full");

    assert!(matches!(begin(&store, 4).await, Err(StoreError::Full)));
    assert_eq!(recorded(&store, 1).await, record("response"));
    assert_in_flight(&begin(&store, 2).await);
    second.renew(LEASE).await.unwrap();
    second.renew(2 * LEASE).await.unwrap();
    // The response has no room, so a tombstone is recorded.
    second.complete(record("the second response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 2).await, record("the second response").tombstone());
    third.release().await.unwrap();
    assert!(store.forget(&key(1)).await.unwrap());

    server.say("CONFIG SET maxmemory 0").await;
    for number in [1, 3, 4] {
        claim(&store, number).await;
    }
}

/// One byte of a value, as SETRANGE takes it.
async fn damage(server: &Redis, at: usize) {
    // Whatever the byte was, it is another one now.
    let script = "local b=redis.call('GETRANGE',KEYS[1],ARGV[1],ARGV[1]);\
                  redis.call('SETRANGE',KEYS[1],ARGV[1],string.char((b:byte()+128)%256))";
    let said = server.say(&format!("EVAL \"{script}\" 1 {} {at}", name(1))).await;
    assert!(said.starts_with("$-1"), "{said}");
}

async fn state_of(server: &Redis) -> String {
    server.say(&format!("DUMP {}", name(1))).await
}

#[tokio::test]
async fn a_damaged_claim_or_record_is_an_error_for_every_caller_and_is_left_as_it_is() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let mut claimed = claim(&store, 1).await;
    for completed in [false, true] {
        if completed {
            claimed.try_clone().unwrap().complete(record("response"), TTL).await.unwrap();
        }
        let length = server.say(&format!("STRLEN {}", name(1))).await;
        let length: usize = length.lines().next().unwrap()[1..].trim().parse().unwrap();
        // Of a record: version, kind, owner and fingerprint.
        let head = 2 + 16 + 32;
        for at in 0..length {
            damage(&server, at).await;
            let before = state_of(&server).await;
            let said = unreadable(begin(&store, 1).await);
            assert!(said.contains("`idem:01010101*`") && said.contains("cannot be read"), "byte {at}: {said}");
            if !completed || at < head {
                unreadable(claimed.renew(LEASE).await);
                unreadable(claimed.try_clone().unwrap().complete(record("other"), TTL).await);
                unreadable(claimed.try_clone().unwrap().release().await);
                unreadable(store.forget(&key(1)).await);
            }
            // The remaining life may be written again, the value may not.
            assert_eq!(before, state_of(&server).await, "byte {at}");
            damage(&server, at).await;
        }
    }
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn what_this_store_did_not_write_is_an_error_and_is_left_as_it_is() {
    let server = Redis::start().await;
    let store = store(&server).await;
    // The value of another key, cut values, other text, and another type.
    claim(&store, 2).await;
    claim(&store, 3).await.complete(record("response"), TTL).await.unwrap();
    let mut foreign =
        vec![format!("COPY {} {} REPLACE", name(2), name(1)), format!("COPY {} {} REPLACE", name(3), name(1))];
    for from in [2, 3] {
        for length in [0, 1, 2, 25, 26, 65] {
            let cut = "redis.call('SET',KEYS[1],string.sub(redis.call('GET',ARGV[1]),1,ARGV[2]))";
            foreign.push(format!("EVAL \"{cut}\" 1 {} {} {length}", name(1), name(from)));
        }
    }
    foreign.push(format!("SET {} other", name(1)));
    foreign.push(format!("EVAL \"redis.call('DEL',KEYS[1]) redis.call('RPUSH',KEYS[1],1)\" 1 {}", name(1)));
    for write in foreign {
        let said = server.say(&write).await;
        assert!(!said.starts_with("-"), "{write}: {said}");
        let before = state_of(&server).await;
        unreadable(begin(&store, 1).await);
        assert_eq!(before, state_of(&server).await, "{write}");
    }
}

#[tokio::test]
async fn two_prefixes_do_not_meet() {
    let server = Redis::start().await;
    let one = store(&server).await;
    let other = RedisStore::builder(server.url()).prefix("other").connect().await.unwrap();
    claim(&one, 1).await.complete(record("one"), TTL).await.unwrap();
    claim(&other, 1).await.complete(record("other"), TTL).await.unwrap();
    assert_eq!(recorded(&one, 1).await, record("one"));
    assert!(one.forget(&key(1)).await.unwrap());
    assert_eq!(recorded(&other, 1).await, record("other"));
}

#[tokio::test]
async fn a_response_that_is_longer_than_the_server_takes_leaves_a_tombstone() {
    let server = Redis::start().await;
    let store = store(&server).await;
    let claimed = claim(&store, 1).await;
    let least = 1 << 20;
    server.say(&format!("CONFIG SET proto-max-bulk-len {least}")).await;
    let response = record(&"x".repeat(2 * least));
    // The server ends the connection as well, and its reply may be lost.
    until("it is completed", async || {
        let again = claimed.try_clone().unwrap();
        again.complete(response.clone(), TTL).await.is_ok()
    })
    .await;
    assert_eq!(recorded(&store, 1).await, response.tombstone());
}

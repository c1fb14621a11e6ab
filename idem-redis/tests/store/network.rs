//! What a step does when the network between store and server fails in the middle of it.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use idem_redis::{ConnectError, Durability, RedisStore};
use idem_runtime::{Begin, BeginOptions, Claim, Idempotency, Store, StoreError};
use idem_testkit::proxy::{Direction, Fault};
use idem_testkit::redis::Redis;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::common::*;

/// The server does the step, and then the connection breaks instead of its reply.
const REPLY_LOST: Fault = Fault::ResetAfter(0);

#[tokio::test]
async fn a_begin_whose_reply_is_lost_is_repeated_and_claims() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    let claimed = claim(&store, 1).await;
    assert_in_flight(&begin(&store, 1).await);
    claimed.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn every_other_step_whose_reply_is_lost_is_repeated_with_the_same_result() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let mut claimed = claim(&store, 1).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    claimed.renew(LEASE).await.unwrap();
    proxy.set(Direction::ToClient, REPLY_LOST);
    claimed.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    let released = claim(&store, 2).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    released.release().await.unwrap();
    claim(&store, 2).await;
}

#[tokio::test]
async fn a_forget_whose_reply_is_lost_reports_that_it_may_have_forgotten() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    for number in [1, 2] {
        claim(&store, number).await.complete(record("response"), TTL).await.unwrap();
    }
    // It reads first, which may be repeated safely.
    proxy.set(Direction::ToClient, REPLY_LOST);
    assert!(store.forget(&key(1)).await.unwrap());
    // The head of the record, and what is left to its key; at most three digits are missing from that.
    let head = 2 + 16 + 32 + 2 + 8 + record("response").tombstone().bytes().len();
    let looked = format!("*2\r\n${head}\r\n\r\n:3599999\r\n").len() + head;
    proxy.set(Direction::ToClient, Fault::ResetAfter(looked));
    assert!(unavailable(store.forget(&key(2)).await).contains("look again"));
    assert!(!store.forget(&key(2)).await.unwrap());
}

#[tokio::test]
async fn a_completion_that_times_out_is_repeated_by_the_copy_and_leaves_one_record() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    let said = unavailable(claimed.complete(record("first"), TTL).await);
    assert!(said.contains("it is unknown whether the step took effect"), "{said}");
    proxy.heal();
    copy.complete(record("again"), TTL).await.unwrap();
    // The first one remains: a client may have seen it.
    assert_eq!(recorded(&store, 1).await, record("first"));
}

#[tokio::test]
async fn a_release_that_times_out_is_repeated_by_the_copy() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(claimed.release().await);
    proxy.heal();
    copy.release().await.unwrap();
    assert!(matches!(claim(&store, 1).await.release().await, Ok(())));
}

#[tokio::test]
async fn a_copy_releases_what_was_released_and_learns_that_a_claim_was_lost() {
    let server = Redis::start().await;
    let store = crate::common::store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    claimed.release().await.unwrap();
    copy.release().await.unwrap();
    let claimed = claim(&store, 2).await;
    let copy = claimed.try_clone().unwrap();
    server.say(&format!("DEL {}", name(2))).await;
    for claim in [claimed, copy] {
        let released = claim.release().await;
        assert!(matches!(released, Err(StoreError::Lost)), "{released:?}");
    }
}

#[tokio::test]
async fn a_release_that_took_effect_is_repeated_without_an_error_if_another_owner_has_claimed_since() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let near = crate::common::store(&server).await;
    let claimed = claim(&store, 1).await;
    let copy = claimed.try_clone().unwrap();
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(claimed.release().await);
    let others = claim(&near, 1).await;
    proxy.heal();
    copy.release().await.unwrap();
    others.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&near, 1).await, record("response"));
}

#[tokio::test]
async fn an_unconfirmed_claim_is_released_long_before_its_lease_expires() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(begin(&store, 1).await);
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"), "the server granted the claim");
    proxy.heal();
    claim_in_time(&store, 1).await.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn the_claim_of_a_dropped_begin_is_released() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, Fault::Hold);
    {
        let mut begin = pin!(begin(&store, 1));
        let half_way = poll_fn(|cx| Poll::Ready(begin.as_mut().poll(cx).is_pending())).await;
        assert!(half_way);
        tokio::select! {
            _ = begin => panic!("its reply is held"),
            () = proxy.seen(Direction::ToClient) => {}
        }
    }
    proxy.heal();
    claim_in_time(&store, 1).await;
}

#[tokio::test]
async fn a_drain_waits_until_an_unconfirmed_claim_is_released() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    let idempotency = Idempotency::new(store.clone());
    idempotency.drain().await;
    proxy.set(Direction::ToClient, Fault::Hold);
    tokio::select! {
        _ = begin(&store, 1) => panic!("its reply is held"),
        () = proxy.seen(Direction::ToClient) => {}
    }
    // The release of the claim whose future was dropped is held as well, until the server was asked.
    proxy.set(Direction::ToServer, Fault::Hold);
    let standing = async || server.say(&format!("EXISTS {}", name(1))).await;
    let drained = async {
        idempotency.drain().await;
        standing().await
    };
    let healed = async {
        assert!(standing().await.starts_with(":1"), "the server granted the claim");
        proxy.heal();
    };
    let (found, ()) = tokio::join!(drained, healed);
    assert!(found.starts_with(":0"), "{found}");
}

#[tokio::test]
async fn without_its_release_a_dropped_claim_is_abandoned_when_its_lease_expires() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let short = Duration::from_millis(100);
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(store.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await);
    // With the store go its tasks, as with its process.
    drop(store);
    let other = RedisStore::connect(server.url()).await.unwrap();
    until("the lease has expired", async || matches!(begin(&other, 1).await, Ok(Begin::Abandoned(_)))).await;
}

#[tokio::test]
async fn without_a_network_a_step_is_an_error_in_time_and_the_store_reconnects() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let mut claimed = claim(&store, 1).await;
    proxy.black_hole();
    let start = Instant::now();
    unavailable(begin(&store, 2).await);
    unavailable(claimed.renew(LEASE).await);
    unavailable(store.forget(&key(3)).await);
    assert!(start.elapsed() < 3 * TIMEOUT + Duration::from_secs(2), "{:?}", start.elapsed());
    proxy.refuse();
    let start = Instant::now();
    unavailable(begin(&store, 4).await);
    assert!(start.elapsed() < TIMEOUT + Duration::from_secs(1), "a refused connection is no reason to wait");
    proxy.heal();
    claimed.renew(LEASE).await.unwrap();
    assert_in_flight(&begin(&store, 1).await);
    claim_in_time(&store, 2).await;
    claim_in_time(&store, 4).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_while_many_steps_are_under_way_costs_none_of_them() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    for round in 0..5 {
        // At another byte of the replies each time.
        proxy.set(Direction::ToClient, Fault::ResetAfter(usize::from(round) * 3));
        let steps: Vec<_> = (0..20u8)
            .map(|number| {
                let store = store.clone();
                tokio::spawn(async move { begin(&store, round * 20 + number).await })
            })
            .collect();
        for step in steps {
            let begun = step.await.unwrap();
            assert!(matches!(begun, Ok(Begin::Claimed(_))), "{begun:?}");
        }
    }
    for number in 0..100 {
        assert_in_flight(&begin(&store, number).await);
    }
}

#[tokio::test]
async fn after_a_demotion_the_step_goes_to_the_new_primary() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let (store, proxy) = through_proxy(&old).await;
    let stranded = claim(&store, 1).await;
    proxy.redirect(new.port());
    old.say(&format!("REPLICAOF 127.0.0.1 {}", new.port())).await;
    // The connection to the old primary is as good as ever, and so is refused for good.
    claim(&store, 2).await.complete(record("response"), TTL).await.unwrap();
    assert!(new.say(&format!("EXISTS {}", name(2))).await.starts_with(":1"));
    // What the new primary never had is lost, and its owner learns of it.
    assert!(matches!(stranded.complete(record("response"), TTL).await, Err(StoreError::Lost)));
}

/// Such as one that copies the new primary's data, and meanwhile replies with what it had.
#[tokio::test]
async fn an_old_primary_does_not_say_that_the_outcome_of_a_renewed_claim_is_unknown() {
    let old = Redis::start().await;
    let new = old.replica().await;
    let ((owners, owners_way), (store, way)) = (through_proxy(&old).await, through_proxy(&old).await);
    let short = BeginOptions::new(Duration::from_millis(50), TTL);
    let Ok(Begin::Claimed(claimed)) = owners.begin(&key(1), &fingerprint(1), &short).await else {
        panic!("the key is free");
    };
    until("the new primary has the claim", async || new.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"))
        .await;
    new.say("REPLICAOF NO ONE").await;
    old.say("REPLICAOF 127.0.0.1 1").await;
    owners_way.redirect(new.port());
    claimed.complete(record("response"), TTL).await.unwrap();
    until("its lease has expired at the old one", async || {
        let left = old.say(&format!("PTTL {}", name(1))).await;
        left[1..].lines().next().unwrap().parse::<u128>().unwrap() < TTL.as_millis()
    })
    .await;
    // The connection to the old one is as good as ever.
    way.redirect(new.port());
    assert_eq!(recorded(&store, 1).await, record("response"));
}

#[tokio::test]
async fn a_claim_whose_reply_was_lost_is_released_if_no_second_try_is_possible() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    // The server of the next connection is refused.
    server.say("CONFIG SET maxmemory-policy allkeys-lru").await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    let said = unavailable(begin(&store, 1).await);
    assert!(said.contains("maxmemory-policy"), "{said}");
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":1"), "the server granted the claim");
    server.say("CONFIG SET maxmemory-policy noeviction").await;
    store.drained().await;
    assert!(server.say(&format!("EXISTS {}", name(1))).await.starts_with(":0"));
    claim(&store, 1).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_claim_whose_key_has_a_value_of_another_type() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 0).await;
    server.say(&format!("RPUSH {} 1", name(1))).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    unreadable(begin(&store, 1).await);
    within("the drain", store.drained()).await;
}

/// Passes everything on, and returns what the client sends that has `text` in it.
async fn pass_on_until(text: &str, client: &mut TcpStream, server: &mut TcpStream) -> Vec<u8> {
    let (mut request, mut reply) = ([0; 4096], [0; 4096]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let sent = &request[..read.unwrap()];
                if sent.windows(text.len()).any(|part| part == text.as_bytes()) {
                    return sent.to_vec();
                }
                server.write_all(sent).await.unwrap();
            }
            read = server.read(&mut reply) => client.write_all(&reply[..read.unwrap()]).await.unwrap(),
        }
    }
}

/// Passes everything on to the server, except for what first has `text` in it: that is given to the caller, who may let it arrive
/// later. Its connection breaks, or is silent from then on.
async fn without_the_first(text: String, server: &Redis, breaks: bool) -> (u16, oneshot::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, to) = (listener.local_addr().unwrap().port(), server.port());
    let (give, first) = oneshot::channel();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let found = pass_on_until(&text, &mut client, &mut server).await;
        let _silent = (!breaks).then_some(client);
        give.send(found).unwrap();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    (port, first)
}

/// Sends the first try of a `begin` after all.
async fn arrives_late_and_claims(first: oneshot::Receiver<Vec<u8>>, server: &Redis) {
    let mut late = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    late.write_all(&first.await.unwrap()).await.unwrap();
    let mut reply = [0; 4];
    late.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b":1\r\n", "the key was free, so it is claimed");
}

/// The first try of a `begin` may arrive as long as there is a claim, so its release is tried again and again.
async fn assert_not_drained(store: &RedisStore, server: &Redis) {
    let before = calls(server, "evalsha").await;
    tokio::select! {
        () = store.drained() => panic!("the first try may still arrive"),
        () = until("the release is tried again", async || calls(server, "evalsha").await >= before + 3) => {}
    }
}

#[tokio::test]
async fn a_repeated_begin_that_was_refused_is_released_if_its_first_try_arrives_late() {
    let server = Redis::start().await;
    let near = crate::common::store(&server).await;
    let others = claim(&near, 1).await;
    let (port, first) = without_the_first(name(1), &server, true).await;
    let store = RedisStore::connect(format!("redis://127.0.0.1:{port}")).await.unwrap();
    assert_in_flight(&begin(&store, 1).await);
    assert_not_drained(&store, &server).await;
    others.release().await.unwrap();
    arrives_late_and_claims(first, &server).await;
    store.drained().await;
    claim(&near, 1).await;
}

#[tokio::test]
async fn a_claim_whose_begin_was_repeated_leaves_nothing_if_the_first_try_arrives_after_its_release() {
    let server = Redis::start().await;
    let near = crate::common::store(&server).await;
    for (number, breaks) in [(1, true), (2, false)] {
        let (port, first) = without_the_first(name(number), &server, breaks).await;
        let store = RedisStore::connect(format!("redis://127.0.0.1:{port}")).await.unwrap();
        let lease = Duration::from_secs(5);
        let begun = store.begin(&key(number), &fingerprint(1), &BeginOptions::new(lease, TTL)).await;
        let Ok(Begin::Claimed(claimed)) = begun else { panic!("the second try claims, but it gave {begun:?}") };
        claimed.release().await.unwrap();
        arrives_late_and_claims(first, &server).await;
        store.drained().await;
        claim(&near, number).await;
    }
}

/// What was sent may be on its way for longer than a lease.
#[tokio::test]
async fn a_short_lease_does_not_shorten_how_long_a_first_try_is_followed_up() {
    let server = Redis::start().await;
    let (port, first) = without_the_first(name(1), &server, true).await;
    let store = RedisStore::connect(format!("redis://127.0.0.1:{port}")).await.unwrap();
    let short = BeginOptions::new(Duration::from_millis(10), TTL);
    let begun = store.begin(&key(1), &fingerprint(1), &short).await;
    let Ok(Begin::Claimed(claimed)) = begun else { panic!("the second try claims, but it gave {begun:?}") };
    claimed.release().await.unwrap();
    assert_not_drained(&store, &server).await;
    arrives_late_and_claims(first, &server).await;
    store.drained().await;
    claim(&crate::common::store(&server).await, 1).await;
}

#[tokio::test]
async fn a_revocation_whose_reply_is_lost_leaves_the_next_owner_alone() {
    let server = Redis::start().await;
    let near = crate::common::store(&server).await;
    claim(&near, 1).await;
    // The least lease that counts as alive: only a revocation sends it.
    let (port, first) = without_the_first("9007199254740991".into(), &server, false).await;
    let builder = RedisStore::builder(format!("redis://127.0.0.1:{port}")).timeout(Duration::from_secs(6));
    let store = builder.connect().await.unwrap();
    let revoked = tokio::spawn(async move { store.revoke(&key(1)).await });
    arrives_late_and_claims(first, &server).await;
    let mut new_owner = abandoned(&near).await;
    new_owner.renew(LEASE).await.unwrap();
    assert!(unavailable(revoked.await.unwrap()).contains("look again"));
    new_owner.complete(record("response"), TTL).await.unwrap();
    assert_eq!(recorded(&near, 1).await, record("response"));
}

/// Without the right to load them beforehand, the server learns of a script when the step sends it.
#[tokio::test]
async fn a_begin_that_was_repeated_and_then_sent_in_full_leaves_nothing_either() {
    let server = Redis::start().await;
    set_user(&server, &documented_rights()).await;
    let (port, first) = without_the_first(name(1).replace("idem", "shop"), &server, true).await;
    let connect = async |url: String| RedisStore::builder(url).prefix("shop").connect().await.unwrap();
    let store = connect(format!("redis://shop:password@127.0.0.1:{port}")).await;
    let lease = Duration::from_secs(5);
    let begun = store.begin(&key(1), &fingerprint(1), &BeginOptions::new(lease, TTL)).await;
    let Ok(Begin::Claimed(claimed)) = begun else { panic!("the second try claims, but it gave {begun:?}") };
    claimed.release().await.unwrap();
    arrives_late_and_claims(first, &server).await;
    store.drained().await;
    claim(&connect(server.url()).await, 1).await;
}

/// The server does not know the script, and when it says so, there is no connection any more to send it on.
#[tokio::test]
async fn a_begin_that_was_repeated_and_cannot_be_sent_in_full_leaves_nothing_either() {
    let server = Redis::start().await;
    set_user(&server, &documented_rights()).await;
    let text = name(1).replace("idem", "shop");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, to) = (listener.local_addr().unwrap().port(), server.port());
    let ((give, first), (hold, held)) = (oneshot::channel(), oneshot::channel());
    tokio::spawn(async move {
        let connect = async || TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let (mut client, mut server) = (listener.accept().await.unwrap().0, connect().await);
        give.send(pass_on_until(&text, &mut client, &mut server).await).unwrap();
        drop(client);
        let (mut client, mut server) = (listener.accept().await.unwrap().0, connect().await);
        let second = pass_on_until(&text, &mut client, &mut server).await;
        hold.send(()).unwrap();
        // Another step has given the connection up, and gets no other.
        drop(listener.accept().await.unwrap());
        server.write_all(&second).await.unwrap();
        tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        // Both steps want to send their scripts in full, and either may be the first.
        for _ in 0..2 {
            drop(listener.accept().await.unwrap());
        }
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = connect().await;
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let builder = RedisStore::builder(format!("redis://shop:password@127.0.0.1:{port}")).prefix("shop");
    let store = builder.timeout(Duration::from_secs(4)).connect().await.unwrap();
    let other_step = async {
        held.await.unwrap();
        let _ = store.inspect(&key(2)).await;
    };
    tokio::join!(async { unavailable(begin(&store, 1).await) }, other_step);
    let near = RedisStore::builder(server.url()).prefix("shop").connect().await.unwrap();
    arrives_late_and_claims(first, &server).await;
    store.drained().await;
    claim(&near, 1).await;
}

#[tokio::test]
async fn a_repeated_begin_that_no_replica_has_leaves_nothing_if_its_first_try_arrives_late() {
    let server = Redis::start().await;
    let near = crate::common::store(&server).await;
    let (port, first) = without_the_first(name(1), &server, true).await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_millis(50) };
    let builder = RedisStore::builder(format!("redis://127.0.0.1:{port}")).durability(durability);
    let store = builder.connect().await.unwrap();
    let said = unavailable(begin(&store, 1).await);
    assert!(said.contains("0 of 1 replicas"), "{said}");
    arrives_late_and_claims(first, &server).await;
    store.drained().await;
    claim(&near, 1).await;
}

#[tokio::test]
async fn a_new_owner_whose_begin_was_repeated_keeps_what_it_takes_over() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let near = crate::common::store(&server).await;
    let short = Duration::from_millis(50);
    drop(near.begin(&key(1), &fingerprint(1), &BeginOptions::new(short, TTL)).await.unwrap());
    abandoned(&near).await;
    claim(&store, 0).await;
    proxy.set(Direction::ToClient, REPLY_LOST);
    let Ok(Begin::Abandoned(mut new_owner)) = begin(&store, 1).await else { panic!("its lease has expired") };
    new_owner.renew(LEASE).await.unwrap();
    // Whatever is released meanwhile, it is not this.
    assert_not_drained(&store, &server).await;
    assert_in_flight(&begin(&near, 1).await);
    new_owner.complete(record("response"), TTL).await.unwrap();
    store.drained().await;
    assert_eq!(recorded(&near, 1).await, record("response"));
}

#[tokio::test]
async fn a_connection_that_a_firewall_has_forgotten_costs_a_second_try_and_no_step() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let mut claimed = claim(&store, 1).await;
    proxy.forget();
    let second = claim(&store, 2).await;
    assert_in_flight(&begin(&store, 2).await);
    proxy.forget();
    claimed.renew(LEASE).await.unwrap();
    proxy.forget();
    claimed.complete(record("response"), TTL).await.unwrap();
    proxy.forget();
    assert_eq!(recorded(&store, 1).await, record("response"));
    proxy.forget();
    second.release().await.unwrap();
    proxy.forget();
    assert!(store.forget(&key(1)).await.unwrap());
}

/// A firewall does not forget it, and one that does is found out before a step needs the connection.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_connection_is_kept_alive() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    claim(&store, 1).await;
    // Only the store connects to the proxy. The fifth column after the number is the timer of the socket, of which `02` is that of
    // keepalive, and when it expires, in hundredths of a second: <https://docs.kernel.org/networking/proc_net_tcp.html>.
    let peer = format!(":{:04X}", proxy.port());
    until("the connection has a timer of half a minute", async || {
        let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let of_store = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut timers =
            of_store.filter(|socket| socket[2].ends_with(&peer) && socket[3] == "01").map(|socket| socket[5]);
        timers
            .next()
            .and_then(|timer| timer.strip_prefix("02:"))
            .is_some_and(|left| u64::from_str_radix(left, 16).unwrap() <= 3000)
    })
    .await;
}

/// As of a server that is stopped, and would have to take them all and throw them away when it goes on. The steps come one after the other,
/// so that the time of each ends while others wait.
#[tokio::test]
async fn while_the_server_is_silent_all_steps_wait_for_one_connection_and_use_it_when_it_speaks() {
    const STEPS: u8 = 100;
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    proxy.black_hole();
    let (start, before) = (Instant::now(), proxy.connections());
    let mut steps = Vec::new();
    for number in 0..STEPS {
        tokio::time::sleep(TIMEOUT / 20).await;
        let store = store.clone();
        steps.push(tokio::spawn(async move { store.inspect(&key(number)).await }));
    }
    for step in steps {
        unavailable(step.await.unwrap());
    }
    let (made, at_most) = (proxy.connections() - before, start.elapsed().div_duration_f64(TIMEOUT) + 1.0);
    assert!(made as f64 <= at_most, "{made} connections for {STEPS} steps, and not {at_most}");
    proxy.heal();
    claim(&store, 1).await;
    assert!(
        proxy.connections() - before <= made + 1,
        "the next step uses the connection that the others have waited for"
    );
}

#[tokio::test]
async fn a_connection_that_is_being_made_ends_with_the_store() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    proxy.redirect(silent.local_addr().unwrap().port());
    proxy.cut();
    unavailable(store.inspect(&key(1)).await);
    let (mut connection, _) = silent.accept().await.unwrap();
    drop(store);
    let _ = within("its end", connection.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn who_waits_alone_for_a_connection_makes_no_other_one_in_its_last_moment() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let refused = RedisStore::builder(format!("redis://{address}")).timeout(TIMEOUT).connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::NoReply(_)), "{refused:?}");
    let next = TcpStream::connect(address).await.unwrap();
    let (_, first) = silent.accept().await.unwrap();
    let (_, second) = silent.accept().await.unwrap();
    assert!(first != second && second == next.local_addr().unwrap(), "{first}, {second}, {next:?}");
}

/// As a future of `buffer_unordered` while its consumer does something else.
#[tokio::test]
async fn a_step_that_is_not_polled_while_it_connects_keeps_no_other_from_connecting() {
    let server = Redis::start().await;
    let timeout = Duration::from_millis(500);
    let store = RedisStore::builder(server.url()).prefix("shop").timeout(timeout).connect().await.unwrap();
    server.say("CLIENT KILL TYPE normal").await;
    server.stall();
    let key = key(1);
    let mut set_aside = Box::pin(store.inspect(&key));
    assert!(tokio::time::timeout(timeout / 2, &mut set_aside).await.is_err(), "the server does not reply");
    server.resume();
    claim(&store, 1).await;
    drop(set_aside);
}

#[tokio::test]
async fn a_step_in_a_runtime_without_sockets_costs_the_others_nothing() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    proxy.cut();
    let other = std::thread::spawn({
        let store = store.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(store.inspect(&key(1)))
        }
    });
    unavailable(other.join().unwrap());
    claim(&store, 1).await;
}

/// What it has begun makes no progress, since its runtime has the socket.
#[tokio::test]
async fn a_step_whose_runtime_is_blocked_while_it_connects_keeps_no_other_from_connecting() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    proxy.black_hole();
    proxy.cut();
    let (block, blocked) = oneshot::channel();
    let (unblock, unblocked) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn({
        let store = store.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let step = async { tokio::time::timeout(TIMEOUT / 2, store.inspect(&key(1))).await };
            assert!(runtime.block_on(step).is_err(), "the server does not reply");
            block.send(()).unwrap();
            let _ = unblocked.recv();
        }
    });
    blocked.await.unwrap();
    assert_eq!(proxy.connections(), 2, "it has begun to connect");
    proxy.heal();
    until("another one connects", async || begin(&store, 1).await.is_ok()).await;
    drop(unblock);
    other.join().unwrap();
}

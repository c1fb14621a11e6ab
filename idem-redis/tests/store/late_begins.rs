//! A `begin` that was sent again, and whose first try arrives late.

use std::time::Duration;

use idem_redis::{Durability, RedisStore};
use idem_runtime::{Begin, BeginOptions, Claim, Store};
use idem_testkit::proxy::{Direction, Fault};
use idem_testkit::redis::Redis;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::common::*;

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
    // The reply is lost.
    proxy.set(Direction::ToClient, Fault::ResetAfter(0));
    let Ok(Begin::Abandoned(mut new_owner)) = begin(&store, 1).await else { panic!("its lease has expired") };
    new_owner.renew(LEASE).await.unwrap();
    // Whatever is released meanwhile, it is not this.
    assert_not_drained(&store, &server).await;
    assert_in_flight(&begin(&near, 1).await);
    new_owner.complete(record("response"), TTL).await.unwrap();
    store.drained().await;
    assert_eq!(recorded(&near, 1).await, record("response"));
}

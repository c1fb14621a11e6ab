//! Connections: how one is made, kept alive and found to be dead.

use std::time::{Duration, Instant};

use idem_redis::{ConnectError, RedisStore};
use idem_runtime::{Claim, Store};
use idem_testkit::redis::Redis;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::common::*;

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

//! What a store refuses to work with, and what it works with anyway.

use std::error::Error;
use std::time::Duration;

use idem_redis::{ConnectError, Durability, RedisStore};
use idem_runtime::{Begin, BeginOptions, Claim, Store};
use idem_testkit::proxy::{Direction, Fault, Proxy};
use idem_testkit::redis::Redis;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::*;

#[tokio::test]
async fn a_server_that_evicts_keys_is_refused_whichever_way_it_says_so() {
    for policy in ["allkeys-lru", "volatile-ttl", "allkeys-random", "volatile-lfu"] {
        for closed in [&[][..], &["--rename-command", "CONFIG", ""]] {
            let server = Redis::with(&[&["--save", "", "--maxmemory-policy", policy][..], closed].concat()).await;
            let refused = RedisStore::connect(server.url()).await.unwrap_err();
            assert!(matches!(&refused, ConnectError::Evicts { policy: found } if found == policy), "{refused:?}");
            assert!(refused.to_string().contains("Set `maxmemory-policy noeviction`"), "{refused}");
        }
    }
}

#[tokio::test]
async fn a_user_who_lacks_a_documented_right_is_refused_and_told_which() {
    let server = Redis::start().await;
    let rights = documented_rights();
    assert!(rights.len() > 9 && rights.contains(&"~shop:*") && rights.contains(&"+wait"), "{rights:?}");
    let connect = async || {
        RedisStore::builder(user_url(&server))
            .prefix("shop")
            .durability(Durability::Replicas { count: 1, within: Duration::from_millis(10) })
            .connect()
            .await
    };
    for lacking in &rights {
        let others: Vec<_> = rights.iter().filter(|right| *right != lacking).copied().collect();
        set_user(&server, &others).await;
        let Err(refused) = connect().await else { panic!("without {lacking}") };
        assert!(matches!(&refused, ConnectError::MissingRight { right } if right == lacking), "{lacking}: {refused:?}");
        assert!(refused.to_string().contains(lacking), "{refused}");
    }
    set_user(&server, &rights).await;
    connect().await.unwrap();
    let in_database = async || RedisStore::builder(user_url(&server) + "/3").prefix("shop").connect().await;
    let refused = in_database().await.unwrap_err();
    assert!(refused.source().unwrap().to_string().contains("'select'"), "{refused:?}");
    server.say("ACL SETUSER shop +select").await;
    in_database().await.unwrap();
}

/// As on servers of which a part is switched off. It is the same as a right that is missing.
#[tokio::test]
async fn a_command_that_the_server_does_not_know_is_named_before_the_first_step() {
    for command in ["EVALSHA", "EVAL", "GET", "GETRANGE", "SET", "PTTL", "TIME", "PEXPIRE", "DEL", "WAIT"] {
        let server = Redis::with(&["--save", "", "--rename-command", command, "hidden"]).await;
        let durability = Durability::Replicas { count: 1, within: Duration::from_millis(10) };
        let Err(refused) = RedisStore::builder(server.url()).durability(durability).connect().await else {
            panic!("without {command}");
        };
        let wanted = format!("+{}", command.to_lowercase());
        assert!(matches!(&refused, ConnectError::MissingRight { right } if *right == wanted), "{command}: {refused:?}");
        assert!(refused.to_string().contains("rename-command"), "{refused}");
    }
}

#[tokio::test]
async fn a_step_that_misses_a_withdrawn_right_says_where_the_server_names_it() {
    for (withdrawn, named) in [("-set", "\r\nset\r\n"), ("-evalsha", "\r\nevalsha\r\n"), ("resetkeys", "\r\nkey\r\n")] {
        let server = Redis::start().await;
        set_user(&server, &documented_rights()).await;
        let store = RedisStore::builder(user_url(&server)).prefix("shop").connect().await.unwrap();
        server.say("ACL LOG RESET").await;
        server.say(&format!("ACL SETUSER shop {withdrawn}")).await;
        let said = unavailable(begin(&store, 1).await);
        assert!(said.contains("lacks a right") && said.contains("ACL LOG"), "{said}");
        assert!(server.say("ACL LOG").await.contains(named), "{withdrawn}");
    }
}

#[tokio::test]
async fn a_right_that_is_withdrawn_is_missed_on_the_next_connection() {
    let server = Redis::start().await;
    let rights = documented_rights();
    set_user(&server, &rights).await;
    let store = RedisStore::builder(user_url(&server)).prefix("shop").connect().await.unwrap();
    drop(claim(&store, 1).await);
    server.say("ACL SETUSER shop -evalsha").await;
    server.say("CLIENT KILL USER shop").await;
    let said = unavailable(begin(&store, 2).await);
    assert!(said.contains("+evalsha"), "{said}");
    server.say("ACL SETUSER shop +evalsha").await;
    drop(claim(&store, 2).await);
}

#[tokio::test]
async fn with_the_optional_rights_waiters_get_messages_and_scripts_are_known() {
    let server = Redis::start().await;
    let mut rights = documented_rights();
    let optional = optional_rights();
    rights.extend(optional.iter().map(String::as_str));
    assert!(rights.contains(&"&shop:*") && rights.contains(&"+script|load"), "{rights:?}");
    set_user(&server, &rights).await;
    let store = RedisStore::builder(user_url(&server)).prefix("shop").connect().await.unwrap();
    server.say("CONFIG RESETSTAT").await;
    let claimed = claim(&store, 1).await;
    assert_eq!(calls(&server, "eval").await, 0, "the server knows the scripts");
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.ended(&key(1)).await }
    });
    let channel = format!("{}:ended", name(1).replace("idem", "shop"));
    until("the waiter is subscribed", async || {
        server.say(&format!("PUBSUB NUMSUB {channel}")).await.contains(":1\r\n")
    })
    .await;
    claimed.complete(record("response"), TTL).await.unwrap();
    waiting.await.unwrap();
    until("it is not subscribed any more", async || {
        server.say(&format!("PUBSUB NUMSUB {channel}")).await.contains(":0\r\n")
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_there_or_silent_or_closed_is_refused_without_the_password() {
    let server = Redis::start().await;
    server.say("CONFIG SET requirepass right").await;
    let silent = Proxy::to(server.port()).await;
    silent.black_hole();
    let closed = Proxy::to(server.port()).await;
    closed.refuse();
    for (port, password) in [(server.port(), "hidden-word"), (silent.port(), "right"), (closed.port(), "right")] {
        let url = format!("redis://:{password}@127.0.0.1:{port}");
        let refused = RedisStore::builder(url).timeout(TIMEOUT).connect().await.unwrap_err();
        let mut said = format!("{refused} {refused:?}");
        let mut source = refused.source();
        while let Some(error) = source {
            said += &format!(" {error} {error:?}");
            source = error.source();
        }
        assert!(matches!(refused, ConnectError::Unreachable(_) | ConnectError::NoReply(_)), "{said}");
        assert!(!said.contains("hidden-word"), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_say_what_it_is_because_it_refuses_everything_is_refused() {
    let server = Redis::with(&["--save", "", "--maxmemory-policy", "allkeys-lru"]).await;
    let mut busy = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    server.say("CONFIG SET busy-reply-threshold 10").await;
    busy.write_all(b"EVAL \"while true do end\" 0\r\n").await.unwrap();
    until("it is busy", async || server.say("PING").await.starts_with("-BUSY")).await;
    let said = |refused: ConnectError| format!("{refused} {refused:?}");
    let refused = RedisStore::connect(server.url()).await.unwrap_err();
    assert!(matches!(&refused, ConnectError::Unreachable(_)) && said(refused).contains("busy"));
    server.say("SCRIPT KILL").await;
    until("it has an end", async || server.say("PING").await.starts_with("+PONG")).await;
    let refused = RedisStore::connect(server.url()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Evicts { .. }), "{refused:?}");
    // The URL has no password.
    server.say("CONFIG SET requirepass right").await;
    let refused = RedisStore::connect(server.url()).await.unwrap_err();
    assert!(matches!(&refused, ConnectError::Unreachable(_)) && said(refused).contains("check the URL, the password"));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_before_anything_is_sent() {
    let nowhere = "redis://127.0.0.1:1";
    let builder = || RedisStore::builder(nowhere);
    let replicas = |count, within| Durability::Replicas { count, within };
    let second = Duration::from_secs(1);
    for (refused, word) in [
        (builder().prefix(""), "prefix"),
        (builder().timeout(Duration::ZERO), "timeout"),
        (builder().timeout(Duration::from_secs(3601)), "`timeout` is longer than an hour; set"),
        (builder().timeout(Duration::MAX), "timeout"),
        (builder().durability(replicas(0, second)), "count"),
        (builder().durability(replicas(1, Duration::from_micros(999))), "within"),
        (builder().durability(replicas(1, Duration::ZERO)), "within"),
        (builder().durability(replicas(1, Duration::from_secs(3601))), "`within` is longer than an hour; set"),
        (builder().durability(replicas(1, Duration::MAX)), "within"),
    ] {
        let refused = refused.connect().await.unwrap_err();
        assert!(matches!(refused, ConnectError::Setting(text) if text.contains(word)), "{refused:?}");
    }
    for (url, word) in [
        ("127.0.0.1:6379", "begins with `redis://`"),
        ("http://127.0.0.1", "begins with `redis://`"),
        ("redis+sentinel://127.0.0.1:26379/main", "a proxy that leads to it"),
    ] {
        let refused = RedisStore::connect(url).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Setting(text) if text.contains(word)), "{refused:?}");
    }
}

#[tokio::test]
async fn a_lease_that_never_ends_is_as_good_as_another_also_if_its_claim_is_unconfirmed() {
    let server = Redis::start().await;
    let (store, proxy) = through_proxy(&server).await;
    let begin = async |number| {
        store.begin(&key(number), &fingerprint(1), &BeginOptions::new(Duration::MAX, Duration::MAX)).await
    };
    let Ok(Begin::Claimed(mut claimed)) = begin(1).await else { panic!("the key is free") };
    claimed.renew(Duration::MAX).await.unwrap();
    claimed.complete(record("response"), Duration::MAX).await.unwrap();
    assert_eq!(recorded(&store, 1).await, record("response"));
    proxy.set(Direction::ToClient, Fault::Drop);
    unavailable(begin(2).await);
    proxy.heal();
    claim_in_time(&store, 2).await;
}

/// All steps once.
async fn works(store: &RedisStore) {
    let mut claimed = claim(store, 1).await;
    claimed.renew(LEASE).await.unwrap();
    assert_in_flight(&begin(store, 1).await);
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.ended(&key(1)).await })
    };
    claimed.complete(record("response"), TTL).await.unwrap();
    waiting.await.unwrap();
    assert_eq!(recorded(store, 1).await, record("response"));
    assert!(store.forget(&key(1)).await.unwrap());
    claim(store, 1).await.release().await.unwrap();
}

#[tokio::test]
async fn both_protocols_and_another_database_will_do() {
    let server = Redis::start().await;
    works(&RedisStore::connect(server.url()).await.unwrap()).await;
    works(&RedisStore::connect(format!("{}/3?protocol=resp3", server.url())).await.unwrap()).await;
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn an_encrypted_url_without_the_feature_says_so() {
    let refused = RedisStore::connect("rediss://localhost").await.unwrap_err();
    assert!(matches!(refused, ConnectError::Setting(text) if text.contains("feature `tls`")), "{refused:?}");
}

/// A store that was connected to one server, and must now connect to another.
async fn moved_to(server: &Redis) -> (RedisStore, Redis, Proxy) {
    let first = Redis::start().await;
    let (store, proxy) = through_proxy(&first).await;
    claim(&store, 1).await;
    proxy.redirect(server.port());
    proxy.cut();
    (store, first, proxy)
}

#[tokio::test]
async fn a_server_that_evicts_is_refused_on_each_new_connection() {
    let evicting = Redis::with(&["--save", "", "--maxmemory-policy", "allkeys-lru"]).await;
    let (store, _first, _proxy) = moved_to(&evicting).await;
    let said = unavailable(begin(&store, 2).await);
    assert!(said.contains("Set `maxmemory-policy noeviction`"), "{said}");
    assert!(evicting.say("DBSIZE").await.starts_with(":0"), "nothing was written");
    evicting.say("CONFIG SET maxmemory-policy noeviction").await;
    claim(&store, 2).await;
}

#[tokio::test]
async fn a_replica_is_refused_at_connect_and_on_each_new_connection() {
    let primary = Redis::start().await;
    let replica = primary.replica().await;
    let refused = RedisStore::connect(replica.url()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Replica), "{refused:?}");
    assert!(refused.to_string().contains("primary"), "{refused}");
    let (store, _first, _proxy) = moved_to(&replica).await;
    let said = unavailable(begin(&store, 2).await);
    assert!(said.contains("give the URL of the primary"), "{said}");
    replica.say("REPLICAOF NO ONE").await;
    claim(&store, 2).await;
}

#[tokio::test]
async fn a_node_of_a_cluster_is_refused() {
    let server = Redis::with(&["--save", "", "--cluster-enabled", "yes"]).await;
    let refused = RedisStore::connect(server.url()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::ClusterNode), "{refused:?}");
}

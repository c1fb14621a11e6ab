//! Encrypted connections to a real server, with certificates that the test makes.
#![cfg(feature = "tls")]

use std::time::Duration;

use idem_redis::{ConnectError, Durability};

use crate::common::tls::{Authority, works};
use crate::common::*;

/// No provider of cryptography is installed in this process: the store must bring its own.
#[tokio::test]
async fn an_encrypted_connection_needs_the_authority_and_nothing_else() {
    let authority = Authority::new();
    let (server, builder) = authority.server("no").await;
    let store = builder.clone().root_certificates(authority.pem()).connect().await.unwrap();
    works(&store).await;
    server.say("CLIENT KILL TYPE normal").await;
    assert_eq!(recorded(&store, 1).await, record("response"));
    for stranger in [builder.clone(), builder.root_certificates(Authority::new().pem())] {
        let refused = stranger.connect().await.unwrap_err();
        assert!(matches!(refused, ConnectError::Unreachable(_)), "{refused:?}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_one() {
    let authority = Authority::new();
    let (_server, builder) = authority.server("yes").await;
    let builder = builder.root_certificates(authority.pem());
    let (certificate, key) = authority.sign("shop");
    works(&builder.clone().client_certificate(certificate, key).connect().await.unwrap()).await;
    let refused = builder.connect().await.unwrap_err();
    assert!(matches!(refused, ConnectError::Unreachable(_)), "{refused:?}");
}

#[tokio::test]
async fn replicas_are_waited_for_on_an_encrypted_connection_too() {
    let authority = Authority::new();
    let (server, builder) = authority.server("no").await;
    let _replica = server.replica().await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_secs(5) };
    works(&builder.root_certificates(authority.pem()).durability(durability).connect().await.unwrap()).await;
}

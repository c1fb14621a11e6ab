//! A provider of cryptography that the service has chosen. It is the process's, so this test is alone in its own.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check panics")]

#[allow(unreachable_pub, reason = "a module of two binaries of tests")]
mod common;

use common::tls::{Authority, works};

#[tokio::test]
async fn a_provider_that_the_service_has_chosen_stays() {
    let ring = rustls::crypto::ring::default_provider();
    assert!(ring.cipher_suites.len() > 1);
    let chosen = rustls::crypto::CryptoProvider { cipher_suites: ring.cipher_suites[..1].to_vec(), ..ring };
    chosen.install_default().unwrap();
    let authority = Authority::new();
    let (_server, builder) = authority.server("no").await;
    works(&builder.root_certificates(authority.pem()).connect().await.unwrap()).await;
    let provider = rustls::crypto::CryptoProvider::get_default().unwrap();
    assert_eq!(provider.cipher_suites.len(), 1);
}

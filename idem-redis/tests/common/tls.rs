//! Certificates, and servers that have them.

use std::path::PathBuf;
use std::time::Duration;

use idem_redis::{RedisStore, RedisStoreBuilder};
use idem_runtime::{Claim, Store};
use idem_testkit::process::free_port;
use idem_testkit::redis::Redis;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

/// An authority, and files with what it signed for the server.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    files: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        // Another one than that of its certificates, which would look as if they had signed themselves.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, files: tempfile::tempdir().unwrap() };
        let (certificate, key) = authority.sign("localhost");
        for (name, pem) in [("ca", authority.pem()), ("certificate", certificate), ("key", key)] {
            std::fs::write(authority.file(name), pem).unwrap();
        }
        authority
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A certificate for this name, and its key.
    pub fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A server with an encrypted port beside its plain one.
    pub async fn server(&self, clients: &str) -> (Redis, RedisStoreBuilder) {
        let port = free_port().to_string();
        let file = |name| self.file(name).to_str().unwrap().to_owned();
        let (ca, certificate, key) = (file("ca"), file("certificate"), file("key"));
        let options = ["--save", "", "--tls-port", &port, "--tls-auth-clients", clients];
        let files = ["--tls-ca-cert-file", &ca, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let server = Redis::with(&[&options[..], &files].concat()).await;
        // Both schemes say the same.
        let scheme = if clients == "yes" { "valkeys" } else { "rediss" };
        (server, RedisStore::builder(format!("{scheme}://localhost:{port}")).timeout(Duration::from_secs(5)))
    }
}

/// The steps of a request, and a waiter.
pub async fn works(store: &RedisStore) {
    let claimed = claim(store, 1).await;
    assert_in_flight(&begin(store, 1).await);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.ended(&key(1)).await }
    });
    claimed.complete(record("response"), TTL).await.unwrap();
    waiting.await.unwrap();
    assert_eq!(recorded(store, 1).await, record("response"));
}

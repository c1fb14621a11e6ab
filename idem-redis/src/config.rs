//! The settings of a store.

use std::fmt;
use std::time::Duration;

use crate::errors::ConnectError;
use crate::link::{Address, LinkSource, Place};

/// Redis counts in milliseconds, and takes 0 for no limit.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// No step is waited for longer.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

/// How many copies of a claim there must be before the handler runs. The response waits a second for those of its record, and is then sent;
/// the engine goes on trying.
///
/// ```
/// use std::time::Duration;
/// use idem_redis::{Durability, RedisStore};
///
/// // A claim and a record count when one replica has them, too.
/// let durability = Durability::Replicas { count: 1, within: Duration::from_millis(200) };
/// let builder = RedisStore::builder("redis://localhost:6379").durability(durability);
/// # let _ = builder;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// One, in the server that was asked. The store waits for no replica.
    #[default]
    None,
    /// This many replicas must have it, too (`WAIT`). If they do not have it in time, the handler does not run, and the engine
    /// tries again to complete the claim. Replicas need not have it on disk.
    Replicas {
        /// How many replicas, at least 1.
        count: u32,
        /// How long to wait for them: from a millisecond to an hour. In addition to its [`timeout`](RedisStoreBuilder::timeout), a step may
        /// take up to twice this time, since concurrent steps share one `WAIT`.
        within: Duration,
    },
}

/// Which server a store is in.
#[derive(Clone)]
pub(crate) enum Server {
    Url(String),
    Cluster(Vec<String>),
    Manager(redis::aio::ConnectionManager),
}

/// Sets up a [`RedisStore`](crate::RedisStore).
///
/// ```no_run
/// # async fn example() -> Result<(), idem_redis::ConnectError> {
/// use std::time::Duration;
/// use idem_redis::RedisStore;
///
/// let store = RedisStore::builder("redis://localhost:6379")
///     .prefix("shop")
///     .timeout(Duration::from_millis(500))
///     .connect()
///     .await?;
/// # let _ = store;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStoreBuilder {
    pub(crate) server: Server,
    pub(crate) prefix: String,
    pub(crate) durability: Durability,
    pub(crate) timeout: Duration,
    #[cfg(feature = "tls")]
    pub(crate) certificates: redis::TlsCertificates,
}

impl RedisStoreBuilder {
    pub(crate) fn new(server: Server) -> Self {
        Self {
            server,
            prefix: "idem".into(),
            durability: Durability::None,
            timeout: Duration::from_secs(2),
            #[cfg(feature = "tls")]
            certificates: redis::TlsCertificates { client_tls: None, root_cert: None },
        }
    }

    /// Sets what the names of all keys and channels begin with, before a colon. Stores with different prefixes share no keys. Default:
    /// `idem`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how many copies there must be. Default: [`Durability::None`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets how long one step may take, connecting included. After that the request is refused with 503. Default: 2 seconds.
    ///
    /// The engine waits five seconds for a step; a longer timeout does not help. From a millisecond to an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the certificates (PEM) of the authority that signed the server's certificate. Default: those that the operating system trusts.
    /// The URL must begin with `rediss://`.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use idem_redis::RedisStore;
    ///
    /// let authority = std::fs::read("authority.pem")?;
    /// let store = RedisStore::builder("rediss://cache.internal:6380").root_certificates(authority).connect().await?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates.root_cert = Some(pem.into());
        self
    }

    /// Sets the certificate chain and the key (both PEM) with which the store proves who it is. Default: none. The URL must begin with
    /// `rediss://`.
    #[cfg(feature = "tls")]
    pub fn client_certificate(mut self, chain_pem: impl Into<Vec<u8>>, key_pem: impl Into<Vec<u8>>) -> Self {
        let client = redis::ClientTlsConfig { client_cert: chain_pem.into(), client_key: key_pem.into() };
        self.certificates.client_tls = Some(client);
        self
    }

    /// Where claims and records are.
    pub(crate) fn place(&self) -> Result<Place, ConnectError> {
        let urls = match &self.server {
            Server::Url(url) => {
                let client = self.client(url)?;
                return Ok(Place::Server(LinkSource::of(client.get_connection_info().clone())));
            }
            Server::Manager(manager) => return Ok(Place::Server(LinkSource::Manager(manager.clone()))),
            Server::Cluster(urls) => urls,
        };
        let clients = urls.iter().map(|url| self.client(url)).collect::<Result<Vec<_>, _>>()?;
        let seeds: Option<Vec<_>> = clients.iter().map(Address::of).collect();
        match (clients.into_iter().next(), seeds) {
            (Some(client), Some(seeds)) => Ok(Place::Cluster(Box::new(client), seeds)),
            _ => Err(ConnectError::Setting("a cluster needs the URL of at least one node, with a host and a port")),
        }
    }

    fn client(&self, url: &str) -> Result<redis::Client, ConnectError> {
        let client = match redis::parse_redis_url(url).as_ref().map(|url| url.scheme()) {
            Some("rediss" | "valkeys") => self.secure_client(url)?,
            Some(_) => redis::Client::open(url),
            None if url.contains("sentinel") => {
                let what = "the store does not ask Sentinel for the primary; give the URL of a proxy that leads to it";
                return Err(ConnectError::Setting(what));
            }
            None => {
                let what = "the URL is not one of Redis; it begins with `redis://`, or with `rediss://` for TLS";
                return Err(ConnectError::Setting(what));
            }
        };
        client.map_err(ConnectError::Unreachable)
    }

    #[cfg(feature = "tls")]
    #[expect(clippy::unnecessary_wraps, reason = "without the feature it fails")]
    fn secure_client(&self, url: &str) -> Result<redis::RedisResult<redis::Client>, ConnectError> {
        // Without one, or with two in one program and none chosen, rustls panics. An error says that the service has chosen one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = self.certificates.clone();
        if certificates.root_cert.is_none() && certificates.client_tls.is_none() {
            return Ok(redis::Client::open(url));
        }
        Ok(redis::Client::build_with_tls(url, certificates))
    }

    #[cfg(not(feature = "tls"))]
    fn secure_client(&self, _: &str) -> Result<redis::RedisResult<redis::Client>, ConnectError> {
        Err(ConnectError::Setting("a URL with TLS needs the feature `tls` of the crate `idem-redis`; enable it"))
    }

    /// Refuses settings that cannot work.
    pub(crate) fn validate(&self) -> Result<(), ConnectError> {
        if self.prefix.is_empty() {
            return Err(ConnectError::Setting("`prefix` is empty; give the keys a name, such as `idem`"));
        }
        if self.timeout < MIN_WAIT {
            return Err(ConnectError::Setting("`timeout` is shorter than a millisecond; no step could succeed"));
        }
        if self.timeout > MAX_WAIT {
            let what = "`timeout` is longer than an hour; set a few seconds, the engine waits for 5";
            return Err(ConnectError::Setting(what));
        }
        let Durability::Replicas { count, within } = self.durability else { return Ok(()) };
        if matches!(self.server, Server::Manager(_)) {
            let what = "`Replicas` needs its own connection, since WAIT would stop yours; give a URL";
            return Err(ConnectError::Setting(what));
        }
        if count == 0 {
            return Err(ConnectError::Setting("`count` of replicas is 0; use `Durability::None`"));
        }
        if within < MIN_WAIT {
            return Err(ConnectError::Setting("`within` is shorter than a millisecond; no replica could reply"));
        }
        if within > MAX_WAIT {
            let what = "`within` is longer than an hour; set some milliseconds, the engine waits 5 seconds for a step";
            return Err(ConnectError::Setting(what));
        }
        Ok(())
    }
}

/// Leaves the URL out, which may contain a password.
impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("prefix", &self.prefix)
            .field("durability", &self.durability)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_does_not_show_the_password() {
        let builder = RedisStoreBuilder::new(Server::Url("redis://:secret@localhost".into()));
        assert!(!format!("{builder:?}").contains("secret"));
    }

    #[test]
    fn the_shortest_and_the_longest_wait_are_accepted() {
        for wait in [Duration::from_millis(1), Duration::from_secs(3600)] {
            let builder = RedisStoreBuilder::new(Server::Url("redis://localhost".into())).timeout(wait);
            builder.durability(Durability::Replicas { count: 1, within: wait }).validate().unwrap();
        }
    }
}

//! A store in Redis or Valkey for [`Idempotency`](idem_runtime::Idempotency): claims and records that all processes of a service share.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use idem_redis::{Durability, RedisStore};
//! use idem_runtime::Idempotency;
//!
//! # async fn example() -> Result<(), idem_redis::ConnectError> {
//! let store = RedisStore::builder("redis://localhost:6379")
//!     .prefix("shop")
//!     .durability(Durability::Replicas { count: 1, within: Duration::from_millis(200) })
//!     .connect()
//!     .await?;
//! let idempotency = Idempotency::new(store);
//! # let _ = idempotency;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! | what happens | [`Durability::None`] | [`Durability::Replicas`] |
//! |---|---|---|
//! | concurrent duplicates, in any number of processes | the handler starts once | the same |
//! | the process that runs the handler dies | after the lease its outcome is unknown; the handler starts again only if the policy says `abandoned = rerun` | the same |
//! | an acknowledgement is lost, a connection breaks, the server stalls | the step is repeated by the same owner, or the request is refused with 503; a claim whose reply was lost is released | the same |
//! | the server is full | a new key is refused; existing keys are served; a response that does not fit is sent, and a retry is refused (409) | the same |
//! | a response is longer than the server's `proto-max-bulk-len` | it is sent, and a retry is refused (409) | the same |
//! | the server restarts with `appendonly yes` and `appendfsync always` | nothing is lost | the same |
//! | the server restarts with `appendonly yes` and `appendfsync everysec` | nothing is lost if only the process died; if the machine died, up to a second is lost | the same |
//! | the server restarts without an append-only file | **everything since the last snapshot is lost, and handlers run again** | the same |
//! | failover to a replica | **what the replica did not have yet is lost, and a handler may run again** | what was acknowledged is in `count` replicas: nothing is lost if one of those is promoted |
//! | the server's clock is set forward or back, or that of a new primary differs | leases and TTLs become shorter or longer by the same amount; forward by more than a lease, a running claim looks abandoned until it is renewed; forward by more than a TTL, **a handler may run again** | the same |
//! | too few replicas | it is not noticed | the handler does not run (503); completing is tried again for a while |
//!
//! `WAIT` does not make Redis a store with consensus. If a replica is promoted that did not acknowledge, the claims and records that it
//! lacks are lost. No client of Redis can prevent that. If a second run is worse than a slow one, keep claims in the database that the
//! handler writes to.
//!
//! # Requirements
//!
//! - Redis 7.0 or newer, or Valkey; one primary, with any number of replicas, or a [cluster](RedisStore::cluster_builder). If the
//!   URL names a proxy, or a host name that moves, the store follows it to the new primary after a failover. In a cluster it
//!   follows the slots.
//! - `maxmemory-policy noeviction`. With any other policy the server drops claims and records when it is full. So do not share the server
//!   with a cache.
//! - `appendonly yes`, unless the server may forget everything when it restarts.
//! - A user with the [rights](#rights) below.
//!
//! The store checks version, policy, role and rights on each new connection, since a failover may lead to another server. With a
//! [connection manager](RedisStore::from_connection_manager), which reconnects by itself, it checks before its first step and after a step
//! that failed.
//! [`connect`](RedisStore::connect) refuses a server that does not meet the requirements, and so does each later step. The error says what
//! to set.
//!
//! # Rights
//!
//! These are the rights for the prefix `shop`. Only [`Durability::Replicas`] needs `+wait`:
//!
//! ```text
//! ACL SETUSER shop on >password resetchannels ~shop:* +info +eval +evalsha +get +getrange +pttl +time +set +pexpire +del +wait
//! ```
//!
//! If the user lacks one of them, the store does not connect, and the error names the right. In a cluster `+cluster|slots +asking` are
//! needed as well, and `+select` if the URL names a database. These are optional:
//!
//! | right | without it |
//! |---|---|
//! | `&shop:* +publish +subscribe +unsubscribe +ping` | waiters poll, and learn of the end of a claim up to 640 ms later |
//! | `+scan` | [`inspect_unknown`](idem_runtime::Idempotency::inspect_unknown) fails |
//! | `+script\|load` | the first steps on a new server take a second round trip |
//!
//! # Encryption
//!
//! With the feature `tls`, URLs may begin with `rediss://`. Use `RedisStoreBuilder::root_certificates` for your own certificate authority,
//! and `client_certificate` for a client certificate. If the process has not installed a crypto provider for rustls, the store installs the
//! one of `ring`. So install your own provider before you connect.
//!
//! # What is stored
//!
//! One string for each key, named by the prefix and a hash; what clients sent is not in the name. A claim has the owner token, the TTL, the
//! fingerprint and the execution info. A record has the owner token, the fingerprint and the response. Checksums bind both to their key. A
//! value that cannot be read is an error, and is never overwritten.
//!
//! A claim outlives its lease by the TTL, so that a retry learns that the outcome is unknown. The lease has expired when less than the TTL
//! is left to the key, by the server's clock. So do not change the expiry of these keys. A claim without an expiry is an error. A record
//! expires with its key, and one without an expiry stays until it is forgotten.
//!
//! Every step is a script on one key, which compares before it writes, and takes one round trip. A refusal reads some hundred bytes, even
//! of a large record. If there is no reply within half of the [`timeout`](RedisStoreBuilder::timeout), the step is also sent on a new
//! connection; a script that runs twice changes nothing the second time. While a server is silent, the store makes one connection to it at
//! a time, and all steps wait for that connection.
//!
//! With `Replicas`, a claim and a completion take a second round trip, on a separate connection. One `WAIT` serves all steps since the
//! previous `WAIT`, so a step waits for its replicas at most twice `within`, and no other step waits for them.

mod begin;
mod checks;
mod claim;
mod client;
mod cluster;
mod config;
mod connection;
mod errors;
#[cfg(test)]
mod histories;
mod inspect;
mod link;
mod node;
mod replicas;
mod scripts;
mod store;
mod turns;
mod unconfirmed;
mod value;
mod waiting;

pub use claim::RedisClaim;
pub use config::{Durability, RedisStoreBuilder};
pub use errors::ConnectError;
pub use store::RedisStore;

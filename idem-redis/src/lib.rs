//! A store in Redis or Valkey for [`Idempotency`](idem_runtime::Idempotency): claims and records that all processes of a
//! service see.
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
//! # What holds
//!
//! | what happens | [`Durability::None`] | [`Durability::Replicas`] |
//! |---|---|---|
//! | concurrent duplicates, in any number of processes | the body starts once | the same |
//! | the process that runs the body dies | after the lease its outcome is unknown; the body starts again only where the policy says `abandoned = rerun` | the same |
//! | an acknowledgement is lost, a connection breaks, the server stalls | the step is repeated by the same owner, or the request is refused with 503; a claim of which nobody heard is given back | the same |
//! | the server is full | a new key is refused; existing keys are answered; a record for which there is no room becomes one that says so | the same |
//! | the server restarts with `appendonly yes` and `appendfsync always` | nothing is lost | the same |
//! | the server restarts with `appendonly yes` and `appendfsync everysec` | nothing, if only the process died; with the machine up to a second is lost | the same |
//! | the server restarts without an append-only file | **everything since the last snapshot is lost, and bodies run again** | the same |
//! | failover to a replica | **what the replica did not have yet is lost, and a body may run again** | what was acknowledged is in `count` replicas: nothing is lost if one of those is promoted |
//! | too few replicas | nothing is noticed | the body does not run (503); a record is tried again for a while |
//!
//! `WAIT` does not make Redis a store with consensus. If a replica is promoted that is not one of those that
//! acknowledged, its claims and records are lost, and no client of Redis can prevent that. Where a second run is worse than
//! a slow one, keep claims in the database that the body writes to.
//!
//! # What the server must be
//!
//! - Redis 7.0 or newer, or Valkey; one primary, with any number of replicas. A URL that follows the primary, such as that of
//!   a proxy or a name that moves, is followed after a failover.
//! - `maxmemory-policy noeviction`, which [`connect`](RedisStore::connect) checks: with any other one the server drops claims
//!   and records when it is full. So do not share it with a cache.
//! - `appendonly yes`, unless it may forget everything when it restarts.
//! - A user with `EVAL`, `EVALSHA`, `GET`, `GETRANGE`, `SET`, `DEL`, `PEXPIRE`, `PTTL` and `TIME` on the keys `prefix:*`, and
//!   `WAIT` for `Replicas`. With `PUBLISH` and `SUBSCRIBE` on the channels `prefix:*`, those who wait are woken at once and do
//!   not only look from time to time. With `SCRIPT`, `INFO` and `CONFIG GET`, the server is checked and the first steps are
//!   smaller.
//!
//! # What stands in Redis
//!
//! One string for each key, named by the prefix and a hash; what clients sent is not in the name. It holds the owner's token,
//! and the lease, the fingerprint and the origin, or the record, with checksums that bind it to its key. A value that cannot be
//! read is an error for everybody, and never overwritten.
//!
//! A lease is judged by the server's clock: what is left of the key's expiry tells how old the claim is. So leave the expiry
//! of these keys alone; a claim without one is an error. A claim outlives its lease for the endpoint's TTL, so that a retry
//! learns that the outcome is unknown. A record is over when its key is, and one without an expiry stays until it is forgotten.
//!
//! A key is claimed, and a record read, with one `SET NX GET`. Every other step is a script that compares before it writes. All
//! of them are on one key, so they fit a cluster; connecting to one is not supported yet.
//!
//! With `Replicas`, a claim and a completion take a second round trip, and the steps of one process wait for their replicas one
//! after the other, since they share a connection.

mod begin;
mod builder;
mod claim;
mod errors;
#[cfg(test)]
mod histories;
mod link;
mod look;
mod orphans;
mod scripts;
mod store;
mod waiting;
mod wire;

pub use builder::{Durability, RedisStoreBuilder};
pub use claim::RedisClaim;
pub use errors::ConnectError;
pub use store::RedisStore;

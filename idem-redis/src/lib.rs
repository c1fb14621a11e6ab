//! Redis.

mod builder;
mod claim;
mod errors;
#[cfg(test)]
mod histories;
mod link;
mod orphans;
mod scripts;
mod store;
mod waiting;
mod wire;

pub use builder::{Durability, RedisStoreBuilder};
pub use claim::RedisClaim;
pub use errors::ConnectError;
pub use store::RedisStore;

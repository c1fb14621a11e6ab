//! What tests of several crates share: real servers, each on its own port and in its own folder, a network between that fails on
//! demand, the reference model of stores, and dice.

pub mod browser;
pub mod dice;
#[path = "../../idem-runtime/src/test_support/intercept.rs"]
pub mod intercept;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod redis_cluster;
pub mod reference;
pub mod statements;
#[path = "../../idem-runtime/src/test_support/subscriber.rs"]
pub mod subscriber;
#[path = "../../idem-runtime/src/test_support/wait.rs"]
pub mod wait;

//! The harness of the black-box tests: a server on a free port, clients that can misbehave, and handlers that say when they
//! run and wait until they are told to continue. Tests wait for signals, never for time to pass.

mod ask;
mod faulty;
pub mod got;
mod h2;
mod logs;
mod probe;
mod proxy;
mod raw;
mod reply;
mod server;
mod setup;
mod spans;
mod streams;
pub mod support;
mod user_store;

pub use ask::{Ask, get, post, put};
pub use faulty::{Faults, Faulty};
pub use h2::H2;
pub use idem_testkit::wait::{until, within};
pub use logs::Logs;
pub use probe::Probe;
pub use proxy::{End, Fault, Proxy};
pub use raw::Connection;
pub use reply::Reply;
pub use server::Server;
pub use setup::{ResponseFactory, Setup};
pub use spans::{CapturedEvent, CapturedSpan, Spans};
pub use streams::{Feed, feed, once};
pub use user_store::{Shelf, ShelfClaim};

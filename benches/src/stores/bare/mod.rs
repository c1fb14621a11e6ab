//! The bare commands: what any store would have to send, with its own kind of connection, and nothing that makes it safe.
//! They count no time, compare no owner, read no fingerprint and retry nothing.

pub mod postgres;
pub mod redis;
pub mod sqlite;

use crate::Failure;

/// The bytes of an owner token.
const OWNER: [u8; 16] = [5; 16];

fn expect(right: bool, what: &str) -> Result<(), Failure> {
    if right { Ok(()) } else { Err(what.into()) }
}

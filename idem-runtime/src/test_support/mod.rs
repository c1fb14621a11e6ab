//! What the tests of this crate share with those of the others: `testkit` has the same files.
#![allow(dead_code, unreachable_pub, reason = "`testkit` uses more of them, and they are public there")]

pub(crate) mod intercept;
pub(crate) mod subscriber;
pub(crate) mod wait;

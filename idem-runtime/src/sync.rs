//! What the store in memory is made of, if several threads meet there: locks, counters, threads, and the cache.
//!
//! Its files name these nowhere else, because they are compiled twice: here, and in `proofs/schedules` with a module of
//! the same names, in which each use of them is a point at which a scheduler may let another thread go first.

pub(crate) use std::hash::RandomState;
pub(crate) use std::sync::atomic::AtomicUsize;
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread;

pub(crate) use moka::Expiry;
pub(crate) use moka::sync::Cache;
pub(crate) use tokio::sync::futures::OwnedNotified;
pub(crate) use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};

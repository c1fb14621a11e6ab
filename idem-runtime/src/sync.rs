//! What the store in memory is made of, where several threads meet: locks, counters, threads.
//!
//! Its files name these nowhere else, because they are compiled twice: here, and in `proofs/schedules` with a module of
//! the same names, where each use of them is a point at which a scheduler may let another thread go first.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread;

pub(crate) use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

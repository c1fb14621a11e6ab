//! What cannot be saved: one SHA-256 over the body, and one read and one write of moka, which holds the records.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::sync::Cache;
use sha2::{Digest, Sha256};

/// A part of the work, alone.
#[derive(Clone, Copy, Debug)]
pub enum Floor {
    /// SHA-256 over as many bytes as the body has.
    Sha256,
    /// A read of a key that is there.
    MokaGet,
    /// A write of a new key.
    MokaInsert,
}

/// All of them.
pub const ALL: [Floor; 3] = [Floor::Sha256, Floor::MokaGet, Floor::MokaInsert];

impl Floor {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha2 over the body",
            Self::MokaGet => "moka get",
            Self::MokaInsert => "moka insert",
        }
    }

    /// Makes what it works on.
    pub fn ready(self, size: usize) -> Ready {
        let cache = Cache::builder().max_capacity(u64::MAX).build();
        for number in 0..1024 {
            cache.insert(key(number), record());
        }
        Ready { floor: self, body: vec![b'x'; size], cache, next: 1024 }
    }
}

/// A floor with what it works on.
#[derive(Debug)]
pub struct Ready {
    floor: Floor,
    body: Vec<u8>,
    cache: Cache<[u8; 32], Bytes>,
    next: u64,
}

impl Ready {
    /// Does it `times` times.
    pub fn run(&mut self, times: u64) -> Duration {
        let numbers = self.next..self.next + times;
        self.next += times;
        let keys: Vec<[u8; 32]> = match self.floor {
            Floor::MokaGet => numbers.map(|number| key(number % 1024)).collect(),
            Floor::Sha256 | Floor::MokaInsert => numbers.map(key).collect(),
        };
        let started = Instant::now();
        for key in keys {
            match self.floor {
                Floor::Sha256 => drop(black_box(Sha256::digest(black_box(&self.body)))),
                Floor::MokaGet => drop(black_box(self.cache.get(black_box(&key)))),
                Floor::MokaInsert => self.cache.insert(black_box(key), record()),
            }
        }
        started.elapsed()
    }
}

fn key(number: u64) -> [u8; 32] {
    Sha256::digest(number.to_le_bytes()).into()
}

fn record() -> Bytes {
    Bytes::from_static(&[b'r'; 100])
}

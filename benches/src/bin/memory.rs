//! Bytes per key, by an allocator that counts: a separate program, since counting takes time. Writes one line of JSON.

use std::alloc::System;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use idem_benches::Failure;
use idem_benches::report::Memory;
use idem_benches::scale::{claim, execute, record_bytes, storage_key};
use idem_runtime::MemoryStore;
use moka::sync::Cache;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> Result<(), Failure> {
    let keys = std::env::args().nth(1).map_or(Ok(100_000), |keys| keys.parse())?;

    // For comparison: moka alone, from the key's hash to the record's bytes, with no fingerprint and no expiry. Beside key and
    // bytes it holds the nodes of its map and of its lists.
    let before = Region::new(ALLOCATOR);
    let cache: Cache<[u8; 32], Bytes> = Cache::builder().max_capacity(u64::MAX).build();
    for number in 0..keys {
        cache.insert(*storage_key(number)?.as_bytes(), record_bytes());
    }
    cache.run_pending_tasks();
    let floor = settled(&before) / keys as f64;

    // Nothing is dropped before the end: moka gives memory back later, which would count for what comes next.
    let store = MemoryStore::new();
    let before = Region::new(ALLOCATOR);
    for number in 0..keys {
        execute(&store, &storage_key(number)?)?;
    }
    let completed = settled(&before) / keys as f64;
    let usage = store.usage();
    if usage.completed as u64 != keys {
        return Err(format!("{} records instead of {keys}", usage.completed).into());
    }
    let accounted = usage.bytes as f64 / keys as f64;

    let claimed = MemoryStore::new();
    let mut claims = Vec::with_capacity(usize::try_from(keys)?);
    let before = Region::new(ALLOCATOR);
    for number in 0..keys {
        claims.push(claim(&claimed, &storage_key(number)?)?);
    }
    let in_flight = settled(&before) / keys as f64;
    // Beside what the allocator gave for the store, each claim is a value in its owner's hands.
    let held = std::mem::size_of_val(&claims[..]) as f64 / keys as f64;
    drop((claims, store, cache));

    let memory = Memory { keys, floor, completed, accounted, in_flight: in_flight + held };
    println!("{}", serde_json::to_string(&memory)?);
    Ok(())
}

/// The bytes that were allocated since and have not been freed, when moka, in the floor, and the janitor, in the store, have tidied up.
fn settled(since: &Region<'_, System>) -> f64 {
    thread::sleep(Duration::from_millis(600));
    let change = since.change();
    // What `realloc` added or took away is in both.
    change.bytes_allocated as f64 - change.bytes_deallocated as f64
}

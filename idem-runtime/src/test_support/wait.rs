//! How tests wait: for a signal, and not for ever.

use std::future::Future;
use std::panic::Location;
use std::time::{Duration, Instant};

/// Far longer than anything takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

/// Awaits `what`, and panics with its name if it does not come.
#[track_caller]
pub fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> + use<F> {
    let (what, caller) = (what.to_owned(), Location::caller());
    async move {
        match tokio::time::timeout(LONGEST, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited in vain for {what}, at {caller}"),
        }
    }
}

/// Asks `is_so` until it is, and panics with its name if that takes too long. For what sends no signal, as another process.
#[track_caller]
pub fn until<C: AsyncFnMut() -> bool>(what: &str, mut is_so: C) -> impl Future<Output = ()> + use<C> {
    let (what, caller, start) = (what.to_owned(), Location::caller(), Instant::now());
    async move {
        while !is_so().await {
            assert!(start.elapsed() < LONGEST, "waited in vain until {what}, at {caller}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

//! No test waits for ever.

use std::future::Future;
use std::panic::Location;
use std::time::Duration;

/// Far longer than anything takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);

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

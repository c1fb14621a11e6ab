//! How a test of one thread listens to events.

use std::sync::LazyLock;

use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Dispatch, Subscriber};

/// Makes `subscriber` that of this thread, until the guard is dropped.
///
/// If a process has one subscriber, the thread that comes first to an event decides alone whether the event is ever reported, and that
/// thread may be of another test, without a subscriber. So there is always a second one.
pub fn set_default(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
    tracing::subscriber::set_default(subscriber)
}

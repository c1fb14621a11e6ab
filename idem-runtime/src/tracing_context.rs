//! The span and the subscriber of a request, for a task that goes on with its work.

use std::future::Future;

use tokio_util::either::Either;
use tracing::Instrument;
use tracing::dispatcher::get_default;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

/// Returns `task` within the current span, and with the current subscriber. None is not carried: setting it would end for good that
/// `tracing` forwards events to the crate `log`.
pub fn in_current_context<F: Future>(task: F) -> impl Future<Output = F::Output> {
    let task = task.in_current_span();
    if get_default(|current| current.is::<NoSubscriber>()) {
        Either::Left(task)
    } else {
        Either::Right(task.with_current_subscriber())
    }
}

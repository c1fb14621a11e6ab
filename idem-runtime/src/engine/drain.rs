//! The end of a drain that does not wait for ever.

use std::fmt;
use std::future::Future;

use super::Idempotency;
use crate::execution::at_once;

/// A drain was ended while executions were running. If the process ends now, they are abandoned: what their bodies did is
/// unknown, and so is what a retry with their keys would do.
///
/// ```
/// use idem_runtime::Idempotency;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let idempotency = Idempotency::in_memory();
/// // Nothing runs, so not even a drain without patience is cut short.
/// match idempotency.drain_until(async {}).await {
///     Ok(()) => {}
///     Err(undrained) => eprintln!("{} bodies are cut off: {undrained}", undrained.executions()),
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undrained {
    executions: usize,
}

impl Undrained {
    /// How many executions were running, those included that were still asking a remote store for their claim.
    pub fn executions(self) -> usize {
        self.executions
    }
}

impl fmt::Display for Undrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (executions, were) =
            (self.executions, if self.executions == 1 { "execution was" } else { "executions were" });
        write!(f, "the drain was ended while {executions} {were} running; {ADVICE}")
    }
}

const ADVICE: &str = "if the process ends now, that is abandoned and its outcome unknown; to lose nothing, drain again, \
                      or give the process longer to end";

impl std::error::Error for Undrained {}

impl Idempotency {
    /// As [`drain`](Self::drain), but ends when `until` does: a timeout, or a second signal. The error says how many
    /// executions were running then, and a warning with the same words is logged.
    ///
    /// What runs goes on as long as the process does, so `drain` or `drain_until` can be called again.
    ///
    /// ```no_run
    /// # async fn example(idempotency: idem_runtime::Idempotency) -> std::io::Result<()> {
    /// use std::time::Duration;
    /// use tokio::signal::unix::{SignalKind, signal};
    /// use tokio::time::sleep;
    ///
    /// let mut terminated = signal(SignalKind::terminate())?;
    /// terminated.recv().await; // or axum::serve(..).with_graceful_shutdown(..), which waits for it
    ///
    /// let second_signal_or_timeout = async {
    ///     tokio::select! {
    ///         _ = terminated.recv() => {}
    ///         () = sleep(Duration::from_secs(25)) => {}
    ///     }
    /// };
    /// if let Err(undrained) = idempotency.drain_until(second_signal_or_timeout).await {
    ///     eprintln!("{undrained}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Undrained`] if executions were running when `until` resolved. Where only the [store](crate::Store::drained) had something
    /// left to do, that is no error, and a warning says so.
    ///
    /// # Cancel safety
    /// Dropping the future only stops the waiting.
    pub async fn drain_until(&self, until: impl Future<Output = ()>) -> Result<(), Undrained> {
        tokio::select! {
            biased;
            () = self.drain() => return Ok(()),
            () = until => {}
        }
        // The last one may have ended in this very moment.
        if at_once(Box::pin(self.drain())).await.is_some() {
            return Ok(());
        }
        let executions = self.handle.core.tracker.len();
        if executions == 0 {
            // Of no body is the outcome in doubt, so it is no error.
            tracing::warn!(
                "the drain was ended while the store was giving back claims that nobody heard of; if the process ends now, their \
                 keys are in flight for a lease, and then their outcome is unknown, although no body started"
            );
            return Ok(());
        }
        let undrained = Undrained { executions };
        tracing::warn!(executions, "{undrained}");
        Err(undrained)
    }
}

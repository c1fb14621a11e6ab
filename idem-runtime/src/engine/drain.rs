//! Waiting until nothing runs any more, for ever or for a while.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::{Idempotency, for_at_most, poll_once};

/// A drain was stopped while executions were running. If the process ends now, their claims are abandoned and their outcomes
/// unknown.
///
/// ```
/// use idem_runtime::Idempotency;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let idempotency = Idempotency::in_memory();
/// // Nothing runs, so even a drain without any time succeeds.
/// match idempotency.drain_until(async {}).await {
///     Ok(()) => {}
///     Err(timeout) => eprintln!("{} executions are cut off: {timeout}", timeout.executions()),
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimeout {
    executions: usize,
}

impl DrainTimeout {
    /// Returns how many executions were running, including those that were still asking a remote store for their claim.
    pub fn executions(self) -> usize {
        self.executions
    }
}

impl fmt::Display for DrainTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (executions, were) =
            (self.executions, if self.executions == 1 { "execution was" } else { "executions were" });
        write!(f, "the drain was stopped while {executions} {were} running; {ADVICE}")
    }
}

const ADVICE: &str = "if the process ends now, their outcomes are unknown; to lose nothing, drain again, or give the process \
                      more time to end";

const UNCONFIRMED: &str = "if the process ends now, their keys are in flight for one lease, and then their outcome is unknown, \
                           although no handler started";

impl std::error::Error for DrainTimeout {}

impl Idempotency {
    /// Waits until no execution is running, even if its client is gone. It also waits until each streamed response was read, or its client
    /// is gone. Then it waits for at most two leases until the [store has finished](crate::Store::drained), and has released claims whose
    /// reply was lost.
    ///
    /// Call it after the server has stopped taking requests. It also waits for executions that start meanwhile. While a remote store is
    /// unreachable, it waits for the responses that cannot be recorded yet.
    ///
    /// Cancel safe: dropping the future only stops the waiting. If the process must end at some time, use
    /// [`drain_until`](Self::drain_until).
    pub async fn drain(&self) {
        let core = &self.handle.core;
        core.tracker.close();
        loop {
            core.tracker.wait().await;
            let drained = Arc::clone(&core.store).drained();
            if for_at_most(core.lease.saturating_mul(2), drained).await.is_none() {
                tracing::warn!("the store could not release all unconfirmed claims; {UNCONFIRMED}");
            }
            // An execution may have started while the store was finishing.
            if core.tracker.is_empty() {
                return;
            }
        }
    }

    /// Waits as [`drain`](Self::drain) does, but stops when `until` resolves: a timeout, or a second signal. The error says how many
    /// executions were running then, and a warning with the same words is logged.
    ///
    /// Executions continue as long as the process does, so `drain` or `drain_until` can be called again.
    ///
    /// ```no_run
    /// # async fn example(idempotency: idem_runtime::Idempotency) -> std::io::Result<()> {
    /// use std::time::Duration;
    /// use tokio::signal::unix::{SignalKind, signal};
    /// use tokio::time::sleep;
    ///
    /// let mut terminated = signal(SignalKind::terminate())?;
    /// terminated.recv().await; // or the end of a server that shuts down gracefully
    ///
    /// let second_signal_or_timeout = async {
    ///     tokio::select! {
    ///         _ = terminated.recv() => {}
    ///         () = sleep(Duration::from_secs(25)) => {}
    ///     }
    /// };
    /// if let Err(timeout) = idempotency.drain_until(second_signal_or_timeout).await {
    ///     eprintln!("{timeout}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`DrainTimeout`] if executions were running when `until` resolved. If only the [store](crate::Store::drained) was not
    /// finished, that is no error, and a warning is logged.
    ///
    /// # Cancel safety
    /// Dropping the future only stops the waiting.
    pub async fn drain_until(&self, until: impl Future<Output = ()>) -> Result<(), DrainTimeout> {
        tokio::select! {
            biased;
            () = self.drain() => return Ok(()),
            () = until => {}
        }
        // The last execution may have ended at the same moment.
        if poll_once(Box::pin(self.drain())).await.is_some() {
            return Ok(());
        }
        let executions = self.handle.core.tracker.len();
        if executions == 0 {
            // No outcome is in doubt, so it is no error.
            tracing::warn!("the drain was stopped while the store was releasing unconfirmed claims; {UNCONFIRMED}");
            return Ok(());
        }
        let timeout = DrainTimeout { executions };
        tracing::warn!(executions, "{timeout}");
        Err(timeout)
    }
}

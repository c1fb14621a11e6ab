//! What an execution can learn about its claim.

use std::fmt;
use std::future;

use tokio::sync::watch;

/// The lease of the claim under which a handler runs.
///
/// A store outside this process grants a claim for some time only, and the engine renews it while the handler runs. If that
/// fails for longer than the lease, because the process was suspended or the store could not be reached, another run may
/// have taken over the claim. The handler is not stopped. But it may ask, before a step that must not happen twice.
///
/// The default, and that of a claim in memory, is never lost.
///
/// ```
/// use idem_runtime::Lease;
///
/// /// Copies rows until it is done or must not go on.
/// async fn copy(lease: Lease, rows: Vec<u32>) -> Result<(), &'static str> {
///     for row in rows {
///         if lease.is_lost() {
///             return Err("another run has taken over");
///         }
///         // .. copy the row ..
///         # let _ = row;
///     }
///     Ok(())
/// }
/// # let _ = copy(Lease::default(), vec![]);
/// ```
#[derive(Clone, Default)]
pub struct Lease {
    /// `None` if claims live as long as their owners. The value says whether the lease was lost.
    lost: Option<watch::Receiver<bool>>,
}

impl Lease {
    /// Makes a lease of which `lost` says whether it was lost.
    pub(crate) fn watching(lost: &watch::Sender<bool>) -> Self {
        Self { lost: Some(lost.subscribe()) }
    }

    /// Returns whether the store has reported that the claim is no longer this execution's. `false` is no guarantee: the store may report
    /// it the next time it is asked.
    pub fn is_lost(&self) -> bool {
        self.lost.as_ref().is_some_and(|lost| *lost.borrow())
    }

    /// Resolves when the lease is lost, and never otherwise. Cancel safe.
    pub async fn lost(&self) {
        if let Some(mut lost) = self.lost.clone()
            && lost.wait_for(|lost| *lost).await.is_ok()
        {
            return;
        }
        future::pending().await
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("lost", &self.is_lost()).finish()
    }
}

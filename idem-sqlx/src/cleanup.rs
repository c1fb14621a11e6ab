//! Deleting what has expired.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use idem_runtime::StoreError;
use tokio::time::sleep;

use crate::core::Core;
use crate::database::{Database, Value, jittered};
use crate::errors::Step;

/// The longest pause between two cleanups.
const PAUSE: Duration = Duration::from_secs(60);

impl<D: Database> Core<D> {
    /// Deletes everything that has expired, batch by batch.
    pub(crate) async fn clean_once(&self) -> Result<u64, StoreError> {
        let mut deleted = 0;
        loop {
            let asked = self.asker.ask(Step::Cleanup, &self.sql.clean, &[Value::Number(self.batch.into())]).await?;
            deleted += asked.rows.len() as u64;
            if asked.rows.len() < self.batch as usize {
                return Ok(deleted);
            }
            // Between two batches others have their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Cleans up for as long as it is polled. Several processes spread out, and share the work.
    pub(crate) async fn cleanup(self: Arc<Self>) -> Infallible {
        loop {
            sleep(jittered(PAUSE)).await;
            match self.clean_once().await {
                Ok(0) => {}
                Ok(deleted) => tracing::debug!(deleted, "expired rows were deleted"),
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, source, "expired rows could not be deleted; trying again later");
                }
            }
        }
    }
}

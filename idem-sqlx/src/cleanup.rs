//! Deleting what has expired.

use std::convert::Infallible;
use std::time::Duration;

use idem_runtime::remote::jitter;
use tokio::time::{Instant, sleep};

use crate::dialect::{Dialect, Value};
use crate::errors::{DatabaseError, Step};
use crate::execute::Executor;

/// The longest pause between two cleanups.
const PAUSE: Duration = Duration::from_secs(60);

/// Deletes everything that has expired, batch by batch, and returns how many rows that was.
pub(crate) async fn once<D: Dialect>(executor: &Executor<D>, batch: u32) -> Result<u64, DatabaseError> {
    let mut deleted = 0;
    loop {
        let start = Instant::now();
        let values = [Value::Number(batch.into())];
        let result = executor.execute(Step::Cleanup, &executor.statements.clean, &values).await?;
        deleted += result.rows.iter().filter(|row| matches!(D::boolean(row, 0), Ok(Some(true)))).count() as u64;
        if result.rows.len() < batch as usize {
            return Ok(deleted);
        }
        // Others have their turn for as long as the batch took.
        sleep(start.elapsed()).await;
    }
}

/// Cleans up as long as it is polled. Several processes spread out, and share the work.
pub(crate) async fn run<D: Dialect>(executor: &Executor<D>, batch: u32) -> Infallible {
    loop {
        sleep(jitter(PAUSE)).await;
        match once(executor, batch).await {
            Ok(0) => {}
            Ok(deleted) => tracing::debug!(deleted, "deleted expired rows"),
            Err(error) => tracing::warn!(%error, "could not delete expired rows; trying again later"),
        }
    }
}

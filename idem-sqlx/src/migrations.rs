//! What the migrations of both databases have in common.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

use crate::errors::MigrateError;

/// How long a migration may take.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(60);

/// Gives a migration up when its time has run out.
pub(crate) async fn in_time(migration: impl Future<Output = Result<(), MigrateError>>) -> Result<(), MigrateError> {
    timeout(MAX_TIME, migration).await.unwrap_or(Err(MigrateError::TimedOut(MAX_TIME)))
}

/// Returns the migrations that a table of version `found` lacks, with their numbers.
pub(crate) fn due<'a>(
    all: &'a [&'a str],
    found: i64,
) -> Result<impl Iterator<Item = (i64, &'a str)> + Send + 'a, MigrateError> {
    let known = i64::try_from(all.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(MigrateError::Newer { found, known });
    }
    Ok((1..).zip(all.iter().copied()).filter(move |(version, _)| *version > found))
}

/// Returns a shipped text with the names of a store.
pub(crate) fn fill_in(text: &str, table: &str, index: &str) -> String {
    text.replace("{table}", table).replace("{index}", index)
}

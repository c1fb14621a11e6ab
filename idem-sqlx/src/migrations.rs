//! What the migrations of both databases have in common.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

use crate::errors::MigrateError;

/// How long a migration may take.
pub(crate) const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Gives a migration up when its time has run out.
pub(crate) async fn in_time(migration: impl Future<Output = Result<(), MigrateError>>) -> Result<(), MigrateError> {
    timeout(MIGRATION_TIMEOUT, migration).await.unwrap_or(Err(MigrateError::TimedOut(MIGRATION_TIMEOUT)))
}

/// A step from one version of the table to the next.
#[derive(Clone, Copy)]
pub(crate) struct Migration {
    pub(crate) text: &'static str,
    /// Earlier versions of this crate work with the table as well, so their `migrate` accepts it.
    pub(crate) is_additive: bool,
}

/// Returns the migrations that a table of version `found` lacks, with their numbers. `breaking` is the latest version of the table
/// with which earlier versions of this crate do not work.
pub(crate) fn due(
    all: &[Migration],
    found: i64,
    breaking: i64,
) -> Result<impl Iterator<Item = (i64, Migration)> + Send + '_, MigrateError> {
    let known = i64::try_from(all.len()).unwrap_or(i64::MAX);
    if breaking > known {
        return Err(MigrateError::Newer { found: breaking, known });
    }
    Ok((1..).zip(all.iter().copied()).filter(move |(version, _)| *version > found))
}

/// Returns a shipped text with the names of a store in place of their placeholders.
pub(crate) fn fill_in(text: &str, names: &[(&str, &str)]) -> String {
    names.iter().fold(text.to_owned(), |text, (placeholder, name)| text.replace(placeholder, name))
}

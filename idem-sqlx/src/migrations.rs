//! What migrations of both databases have in common.

use crate::errors::MigrateError;

/// The migrations that a table of version `found` lacks, with their numbers.
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

/// A shipped text with the names of a store.
pub(crate) fn fill_in(text: &str, table: &str, index: &str) -> String {
    text.replace("{table}", table).replace("{index}", index)
}

//! Names of schemas and tables. They become part of the SQL, so only plain identifiers are accepted.

use std::fmt;

/// Room for the suffixes of the index and of the table of migrations, within PostgreSQL's 63 bytes.
const MAX_LENGTH: usize = 40;

/// A name that is not a plain identifier: 1 to 40 of `a-z`, `0-9` and `_`, not starting with a digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    name: String,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} cannot be the name of a schema or a table; nothing was opened. Use 1 to {MAX_LENGTH} of a-z, 0-9 and _, \
             and no digit first",
            self.name
        )
    }
}

impl std::error::Error for InvalidName {}

/// Checks that `name` is a plain identifier.
pub(crate) fn check(name: &str) -> Result<(), InvalidName> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let bytes = name.as_bytes();
    let starts_well = bytes.first().is_some_and(|first| !first.is_ascii_digit());
    if starts_well && bytes.len() <= MAX_LENGTH && bytes.iter().all(|&byte| plain(byte)) {
        return Ok(());
    }
    Err(InvalidName { name: name.chars().take(2 * MAX_LENGTH).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_identifiers_pass() {
        for name in ["idempotency", "_x", "a1_b2", &"a".repeat(MAX_LENGTH)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_could_be_more_than_a_name_is_refused() {
        let long = "a".repeat(MAX_LENGTH + 1);
        let names =
            ["", "1a", "A", "a b", "a-b", "a.b", "a\"b", "a'b", "a;drop table b", "a\0", "ä", "a\n", "$1", &long];
        for name in names {
            assert!(check(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_refusal_shows_the_start_of_the_name_and_says_what_to_write() {
        let said = check(&"A".repeat(1000)).unwrap_err().to_string();
        let start = format!("\"{}\" cannot be the name of a schema or a table; ", "A".repeat(80));
        assert!(said.starts_with(&start) && said.contains("Use 1 to 40 of a-z, 0-9 and _"), "{said}");
    }
}

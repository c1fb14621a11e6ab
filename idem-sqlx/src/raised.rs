//! An error of a database, as others get it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;

use sqlx::error::{DatabaseError, ErrorKind};

#[derive(Debug)]
struct Raised {
    code: Option<String>,
    message: String,
}

/// Returns an error that means the same, so that it can be reported once more.
pub(crate) fn again(error: &sqlx::Error) -> sqlx::Error {
    if let Some(refused) = error.as_database_error() {
        let code = refused.code().map(Cow::into_owned);
        return sqlx::Error::Database(Box::new(Raised { code, message: refused.message().to_owned() }));
    }
    // Without what sqlx puts before it, and will put before it again.
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    match error {
        sqlx::Error::Io(_) => io::Error::other(why).into(),
        sqlx::Error::Tls(_) => sqlx::Error::Tls(why.into()),
        sqlx::Error::Protocol(what) => sqlx::Error::Protocol(what.clone()),
        sqlx::Error::WorkerCrashed => sqlx::Error::WorkerCrashed,
        _ => sqlx::Error::Configuration(why.into()),
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Raised {}

impl DatabaseError for Raised {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.code.as_deref().map(Cow::Borrowed)
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

/// Returns an error with this code and this message.
#[cfg(test)]
pub(crate) fn raised(code: &str, message: &str) -> sqlx::Error {
    sqlx::Error::Database(Box::new(Raised { code: Some(code.to_owned()), message: message.to_owned() }))
}

/// Returns an error that is none of the database.
#[cfg(test)]
pub(crate) fn failure() -> sqlx::Error {
    sqlx::Error::Protocol("a byte too many".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_is_reported_again_is_of_the_same_kind_and_says_the_same() {
        let refused = raised("28P01", "password authentication failed");
        let once_more = again(&refused);
        assert_eq!(once_more.as_database_error().and_then(DatabaseError::code).as_deref(), Some("28P01"));
        let others = [
            io::Error::other("no route").into(),
            sqlx::Error::Configuration("no TLS".into()),
            sqlx::Error::Tls("unknown issuer".into()),
            failure(),
            sqlx::Error::WorkerCrashed,
        ];
        for error in [refused].into_iter().chain(others) {
            assert_eq!(again(&error).to_string(), error.to_string());
        }
    }
}

//! What can go wrong with a store and with what it holds.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Why a store could not do what it was asked.
///
/// ```
/// use std::io;
/// use idem_runtime::StoreError;
///
/// let error = StoreError::unavailable(io::Error::from(io::ErrorKind::ConnectionReset));
/// assert_eq!(error.to_string(), "the store is unavailable");
/// // The client never sees the source; the log does.
/// assert!(std::error::Error::source(&error).is_some());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no room for a new key. Existing keys are still served.
    Full,
    /// The store could not be reached, or its reply was not understood.
    Unavailable(Arc<dyn Error + Send + Sync>),
    /// The claim belongs to another owner by now, or no longer exists.
    Lost,
    /// The key has a value that cannot be read: damaged, or written by a later version. The handler has run, or may have.
    Unreadable(Arc<dyn Error + Send + Sync>),
    /// This store cannot report the state of a key without claiming it.
    CannotInspect,
    /// This store cannot take a claim away from an owner that is alive.
    CannotRevoke,
}

impl StoreError {
    /// Makes the error of a store that could not be reached, or whose reply was not understood, because of `source`.
    pub fn unavailable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(Arc::from(source.into()))
    }

    /// Makes the error of a value that could not be read, because of `source`.
    pub fn unreadable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreadable(Arc::from(source.into()))
    }

    /// Returns the text of the source, for logs.
    pub(crate) fn cause(&self) -> Option<String> {
        self.source().map(ToString::to_string)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the store has no room for a new key",
            Self::Unavailable(_) => "the store is unavailable",
            Self::Lost => "the claim is no longer held by this owner",
            Self::Unreadable(_) => "the value under the key cannot be read",
            Self::CannotInspect => "this store cannot be inspected",
            Self::CannotRevoke => "this store cannot take a claim away from its owner",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(source) | Self::Unreadable(source) => Some(&**source),
            Self::Full | Self::Lost | Self::CannotInspect | Self::CannotRevoke => None,
        }
    }
}

/// Why stored bytes could not be read. Whether the handler ran is not known, so it does not run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError(pub &'static str);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the record is {}", self.0)
    }
}

impl Error for DecodeError {}

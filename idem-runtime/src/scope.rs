//! The scope: whose key it is.

/// Whose key it is. Part of the storage key, so that two scopes never meet.
///
/// ```
/// use idem_runtime::Scope;
///
/// let tenant = Scope::arguments().with(b"tenant-7");
/// assert_ne!(tenant, Scope::GLOBAL);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Kind and values, each value length-prefixed; empty for the global scope.
    encoded: Vec<u8>,
}

impl Scope {
    /// One scope for all callers.
    pub const GLOBAL: Self = Self { encoded: Vec::new() };

    /// A scope made from values that the handler's arguments gave; add them with [`Scope::with`].
    pub fn arguments() -> Self {
        Self { encoded: vec![b'a'] }
    }

    /// A scope made from the values of the request header `name`; add them with [`Scope::with`].
    pub fn header(name: &str) -> Self {
        Self { encoded: vec![b'h'] }.with(name.as_bytes())
    }

    /// Adds a value. The order of values counts, and no two lists of values give the same scope.
    #[must_use]
    pub fn with(mut self, value: &[u8]) -> Self {
        self.encoded.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.encoded.extend_from_slice(value);
        self
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.encoded
    }
}

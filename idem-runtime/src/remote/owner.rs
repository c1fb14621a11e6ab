//! Owner tokens.

use crate::error::StoreError;

/// What makes a claim one owner's: 16 random bytes that it carries, and that every change compares.
///
/// ```
/// use idem_runtime::remote::OwnerToken;
///
/// let owner = OwnerToken::random()?;
/// assert_eq!(OwnerToken::from_bytes(*owner.as_bytes()), owner);
/// # Ok::<(), idem_runtime::StoreError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerToken([u8; 16]);

impl OwnerToken {
    /// Returns a token that no other owner has.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the operating system gives no random bytes.
    pub fn random() -> Result<Self, StoreError> {
        let mut token = [0; 16];
        match getrandom::fill(&mut token) {
            Ok(()) => Ok(Self(token)),
            Err(error) => Err(StoreError::unavailable(format!(
                "could not make an owner token, so nothing was claimed: the operating system gave no random bytes ({error})"
            ))),
        }
    }

    /// Returns the token with these bytes, which a store kept.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns what a store keeps.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_owners_have_one_token() {
        let tokens: HashSet<_> = (0..10_000).map(|_| OwnerToken::random().unwrap()).collect();
        assert_eq!(tokens.len(), 10_000);
    }
}

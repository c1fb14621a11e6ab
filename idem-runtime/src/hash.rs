//! Unambiguous hashing: what goes in is tagged and length-prefixed, so no two lists of parts give the same bytes.

use sha2::{Digest, Sha256};

/// A running SHA-256 over tagged, length-prefixed parts.
#[derive(Clone)]
pub(crate) struct PartHasher(Sha256);

impl PartHasher {
    /// Starts a hash in a domain: the same parts under another domain give another hash.
    pub(crate) fn new(domain: u8) -> Self {
        let mut hasher = Sha256::new();
        hasher.update([domain]);
        Self(hasher)
    }

    /// Adds a part: its tag, its length as eight bytes, its bytes.
    pub(crate) fn part(&mut self, tag: u8, value: &[u8]) {
        let mut head = [tag; 9];
        head[1..].copy_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.update(head);
        self.0.update(value);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The first `N` bytes in lower-case hex.
pub(crate) fn hex<const N: usize>(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(N * 2);
    for byte in bytes.iter().take(N) {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0x0f)]));
    }
    text
}

/// The domains in use. A number is never given twice, since records outlive releases.
pub(crate) mod domain {
    pub(crate) const STORAGE_KEY: u8 = 1;
    pub(crate) const FINGERPRINT: u8 = 2;
    pub(crate) const CHILD_KEY: u8 = 3;
    pub(crate) const LOGGED_KEY: u8 = 4;
    pub(crate) const CHECKSUM: u8 = 5;
    pub(crate) const ONCE_KEY: u8 = 6;
}

//! The fingerprint: what must be equal on a retry.

use std::fmt;

use crate::hash::{PartHasher, domain, hex};

/// SHA-256 over the parts of a request that must be equal on a retry.
///
/// ```
/// use idem_runtime::Fingerprint;
///
/// let of = |body: &[u8]| {
///     let mut builder = Fingerprint::builder();
///     builder.part(b'm', b"POST");
///     builder.part(b'b', body);
///     builder.finish()
/// };
/// assert_eq!(of(b"two teas"), of(b"two teas"));
/// assert_ne!(of(b"two teas"), of(b"two coffees"));
///
/// // As a store keeps it.
/// assert_eq!(Fingerprint::from_bytes(*of(b"two teas").as_bytes()), of(b"two teas"));
/// ```
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Starts a fingerprint; add the parts in a fixed order.
    pub fn builder() -> FingerprintBuilder {
        FingerprintBuilder(PartHasher::new(domain::FINGERPRINT))
    }

    /// Returns a fingerprint that was stored earlier.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Looks at every byte, so that the time tells nothing about where two fingerprints differ.
impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl Eq for Fingerprint {}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", hex::<4>(&self.0))
    }
}

/// Collects the parts of a fingerprint. Every part is tagged and length-prefixed, so that no two lists of parts give the
/// same bytes.
#[derive(Clone)]
pub struct FingerprintBuilder(PartHasher);

impl FingerprintBuilder {
    /// Adds a part. `tag` says what it is; a tag may be used several times, and order counts.
    pub fn part(&mut self, tag: u8, value: &[u8]) {
        self.0.part(tag, value);
    }

    /// Returns the fingerprint of all parts so far.
    pub fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finish())
    }
}

impl fmt::Debug for FingerprintBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintBuilder(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(parts: &[(u8, &[u8])]) -> Fingerprint {
        let mut builder = Fingerprint::builder();
        for (tag, value) in parts {
            builder.part(*tag, value);
        }
        builder.finish()
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let all = [
            fingerprint(&[(b'p', b"ab"), (b'q', b"c")]),
            fingerprint(&[(b'p', b"a"), (b'q', b"bc")]),
            fingerprint(&[(b'p', b"abc"), (b'q', b"")]),
            fingerprint(&[(b'p', b"abc")]),
            fingerprint(&[(b'q', b"abc")]),
            fingerprint(&[(b'q', b"c"), (b'p', b"ab")]),
            fingerprint(&[]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one), "{index}");
        }
    }

    #[test]
    fn is_a_pure_function_of_its_parts() {
        assert_eq!(fingerprint(&[(b'p', b"a")]), fingerprint(&[(b'p', b"a")]));
        assert_eq!(
            hex::<32>(fingerprint(&[(b'p', b"a")]).as_bytes()),
            "d68d87d42a6e1243b7246d3231ce82805e897bcad396e7ca3b85e162e875ad6d"
        );
    }

    #[test]
    fn debug_shows_the_beginning_and_no_part() {
        assert_eq!(format!("{:?}", Fingerprint::from_bytes([7; 32])), "Fingerprint(07070707)");
        let mut builder = Fingerprint::builder();
        builder.part(b'p', b"secret");
        assert_eq!(format!("{builder:?}"), "FingerprintBuilder(..)");
    }
}

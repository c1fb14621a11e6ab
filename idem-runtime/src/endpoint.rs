//! The endpoint of a request, and the tag of its policy: small values that attempts, claims and records carry.

use std::fmt;
use std::str;

/// The endpoint of a request: its method and its route template, such as `POST /orders/{id}`, and never its raw path.
///
/// It needs no allocation, so one of more than 95 bytes is cut, and ends with an ellipsis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    length: u8,
    text: [u8; Self::MAX_LENGTH],
}

impl Endpoint {
    const MAX_LENGTH: usize = 95;
    const ELLIPSIS: &str = "…";

    /// No endpoint, for callers that have none.
    pub const UNKNOWN: Self = Self { length: 0, text: [0; Self::MAX_LENGTH] };

    /// Makes the endpoint with this method and this route template.
    ///
    /// ```
    /// use idem_runtime::Endpoint;
    ///
    /// assert_eq!(Endpoint::new("POST", "/orders/{id}").as_str(), "POST /orders/{id}");
    /// ```
    pub fn new(method: &str, route: &str) -> Self {
        let mut endpoint = Self::UNKNOWN;
        if !(endpoint.push(method) && endpoint.push(" ") && endpoint.push(route)) {
            while endpoint.as_str().len() + Self::ELLIPSIS.len() > Self::MAX_LENGTH {
                let shorter = endpoint.as_str().char_indices().next_back().map_or(0, |(start, _)| start);
                endpoint.length = u8::try_from(shorter).unwrap_or(0);
            }
            // Endpoints are compared with the bytes that they do not use.
            endpoint.text[usize::from(endpoint.length)..].fill(0);
            endpoint.push(Self::ELLIPSIS);
        }
        endpoint
    }

    /// Adds as much of `text` as fits. Returns `false` if that is not all of it.
    pub(crate) fn push(&mut self, text: &str) -> bool {
        let length = usize::from(self.length);
        let fits = whole_characters(text, Self::MAX_LENGTH - length);
        self.text[length..length + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length = u8::try_from(length + fits).unwrap_or(u8::MAX);
        fits == text.len()
    }

    /// Returns the endpoint as text; empty if it is unknown.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }
}

/// Returns the length of the longest start of `text` that has at most `max` bytes and ends between two characters.
fn whole_characters(text: &str, max: usize) -> usize {
    (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0)
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.as_str())
    }
}

/// A short hash of the rules that decide which requests are equal: the handler's path, and the policy's key, scope and
/// fingerprint.
///
/// Claims and records carry it. If a request differs from a record and the tags differ as well, the record was made by
/// another version of the endpoint, or by another service.
///
/// ```
/// use idem_runtime::PolicyTag;
///
/// const CREATE: PolicyTag = PolicyTag::NONE.with(b"shop::orders::create").with(b"body");
/// assert_ne!(CREATE, PolicyTag::NONE.with(b"shop::orders::create").with(b"json"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyTag(pub(crate) u64);

impl PolicyTag {
    /// The tag of no rules at all. FNV-1a starts from this number.
    pub const NONE: Self = Self(0xcbf2_9ce4_8422_2325);

    /// Returns the tag of these rules and one more. The order counts.
    #[must_use]
    pub const fn with(self, rule: &[u8]) -> Self {
        let mut hash = fnv(self.0, &(rule.len() as u64).to_le_bytes());
        hash = fnv(hash, rule);
        Self(hash)
    }

    /// Returns the hash.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

/// FNV-1a, which a `const` can compute. A tag tells honest versions apart and is no protection from an attacker.
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x100_0000_01b3);
        index += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_endpoint_is_cut_between_characters() {
        for route in ["/a".repeat(60), format!("/{}", "é".repeat(100)), "x".repeat(90), "𝄞".repeat(40)] {
            let endpoint = Endpoint::new("POST", &route);
            let whole = format!("POST {route}");
            let text = endpoint.as_str();
            assert!(text.len() <= Endpoint::MAX_LENGTH);
            match text.strip_suffix(Endpoint::ELLIPSIS) {
                None => assert_eq!(text, whole),
                Some(start) => assert!(whole.starts_with(start) && start.len() > 85, "{text}"),
            }
            assert_eq!(text == whole, whole.len() <= Endpoint::MAX_LENGTH, "{text}");
            let mut same = Endpoint::UNKNOWN;
            assert!(same.push(text) && same == endpoint, "what was cut does not count: {text}");
        }
        assert_eq!(Endpoint::UNKNOWN.as_str(), "");
    }

    #[test]
    fn a_tag_depends_on_every_rule_and_on_where_it_ends() {
        let tag = |rules: &[&[u8]]| rules.iter().fold(PolicyTag::NONE, |tag, rule| tag.with(rule));
        let all =
            [tag(&[]), tag(&[b""]), tag(&[b"ab", b"c"]), tag(&[b"a", b"bc"]), tag(&[b"abc"]), tag(&[b"c", b"ab"])];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one), "{index}");
        }
    }
}

//! The trace of a request, for operators.

use std::fmt;

use crate::hash::hex;

/// The trace that a request belongs to, from its `traceparent` header (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span of the sender.
    pub parent_id: [u8; 8],
    /// The flags; the lowest bit is set if the trace is sampled.
    pub flags: u8,
}

impl TraceParent {
    /// The length in a stored [`ExecutionInfo`](crate::ExecutionInfo).
    pub(crate) const LENGTH: usize = 16 + 8 + 1;
    const TEXT: usize = 55;

    /// Reads the value of a `traceparent` header. Returns `None` if it is malformed; W3C Trace Context, section 4.3, tells a
    /// receiver to disregard such a header.
    ///
    /// ```
    /// use idem_runtime::TraceParent;
    ///
    /// let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// assert_eq!(TraceParent::parse(header.as_bytes()).unwrap().to_string(), header);
    /// ```
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_first_chunk::<{ Self::TEXT }>()?;
        let version = from_hex::<1>(&head[..2])?[0];
        // Later versions may add parts at the end, after another dash.
        let ends = match version {
            0xff => false,
            0 => rest.is_empty(),
            _ => rest.first().is_none_or(|&next| next == b'-'),
        };
        if !ends || head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
            return None;
        }
        let trace_id = from_hex::<16>(&head[3..35]).filter(|id| *id != [0; 16])?;
        let parent_id = from_hex::<8>(&head[36..52]).filter(|id| *id != [0; 8])?;
        Some(Self { trace_id, parent_id, flags: from_hex::<1>(&head[53..])?[0] })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex::<16>(&self.trace_id), hex::<8>(&self.parent_id), self.flags)
    }
}

/// Returns the bytes that these lower-case hexadecimal digits mean.
fn from_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, two) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(two[0])? << 4 | digit(two[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_its_specification_says() {
        let parse = |text: &str| TraceParent::parse(text.as_bytes());
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(parse(&good).unwrap().to_string(), good);
        assert!(parse(&format!("cc-{trace}-{parent}-01-what-comes-later")).is_some());
        let bad = [
            String::new(),
            format!("{good}-more"),
            format!("ff-{trace}-{parent}-01"),
            format!("cc-{trace}-{parent}-01x"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}_{parent}-01"),
            format!("00-{trace}-{parent}-0"),
            format!("00-{trace}-{parent}-0g"),
        ];
        for text in bad {
            assert_eq!(parse(&text), None, "{text}");
        }
    }
}

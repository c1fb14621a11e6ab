//! Which response headers are recorded.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::policy::{NEVER_REPLAYED, Replay};

/// Without these a body has no meaning, so they are recorded with the body even if the headers are not replayed.
const OF_THE_BODY: [HeaderName; 2] = [header::CONTENT_TYPE, header::CONTENT_ENCODING];

/// Which headers are recorded.
#[derive(Clone, Copy)]
pub(super) enum RecordedHeaders {
    All,
    OfTheBody,
    None,
}

impl RecordedHeaders {
    /// The headers of what is replayed.
    pub(super) fn of(replay: Replay) -> Self {
        match replay {
            Replay { headers: true, .. } => Self::All,
            Replay { body: true, .. } => Self::OfTheBody,
            Replay { .. } => Self::None,
        }
    }
}

/// Returns the headers to record, in order, repeated names included.
pub(super) fn recorded(
    headers: &HeaderMap,
    which: RecordedHeaders,
) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let listed = listed_by_connection(headers);
    headers.iter().filter(move |(name, _)| {
        let wanted = match which {
            RecordedHeaders::All => true,
            RecordedHeaders::OfTheBody => OF_THE_BODY.contains(name),
            RecordedHeaders::None => false,
        };
        wanted
            && !is_never_replayed(name)
            && !listed.iter().any(|other| other.eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// Returns whether `name` must not be replayed, whatever a record says.
pub(super) fn is_never_replayed(name: &HeaderName) -> bool {
    NEVER_REPLAYED.binary_search(&name.as_str()).is_ok()
}

/// Returns the names of trailers that the response announces.
pub(super) fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    list(headers, header::TRAILER).filter_map(|name| HeaderName::from_bytes(name).ok()).collect()
}

/// Returns the names that `Connection` makes hop-by-hop fields. As bytes: one that is no name does not hide the names beside it.
fn listed_by_connection(headers: &HeaderMap) -> Vec<&[u8]> {
    list(headers, header::CONNECTION).collect()
}

/// Returns the members of a header that is a list, over all of its lines.
pub(super) fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    lines.flat_map(|line| line.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(headers: &HeaderMap, which: RecordedHeaders) -> Vec<&str> {
        recorded(headers, which).map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_list_is_sorted_so_that_it_can_be_searched() {
        assert!(NEVER_REPLAYED.is_sorted());
    }

    #[test]
    fn what_belongs_to_the_connection_is_not_recorded() {
        let mut headers = HeaderMap::new();
        for name in NEVER_REPLAYED {
            headers.append(*name, HeaderValue::from_static("x"));
        }
        headers.insert("connection", HeaderValue::from_bytes(b"close, X-Hop ,\xff").unwrap());
        headers.insert("x-hop", HeaderValue::from_static("1"));
        headers.insert("x-stays", HeaderValue::from_static("1"));
        assert_eq!(names(&headers, RecordedHeaders::All), ["x-stays"]);
    }

    #[test]
    fn order_and_repeated_names_stay() {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("a"));
        headers.append("x-b", HeaderValue::from_static("b"));
        headers.append("link", HeaderValue::from_static("c"));
        headers.append("content-type", HeaderValue::from_static("d"));
        assert_eq!(names(&headers, RecordedHeaders::All), ["link", "link", "x-b", "content-type"]);
        assert_eq!(names(&headers, RecordedHeaders::OfTheBody), ["content-type"]);
        assert_eq!(names(&headers, RecordedHeaders::None), [""; 0]);
    }
}

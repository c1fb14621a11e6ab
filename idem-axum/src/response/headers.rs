//! Which response headers are recorded.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

/// Never recorded and never replayed, sorted. Framing and hop-by-hop fields (RFC 9110, section 7.6.1) describe a
/// connection that is gone; `Content-Length` is computed anew, since a wrong one desynchronises the connection; the
/// others belong to one exchange, one client or one point in time.
pub(crate) const NEVER: &[&str] = &[
    "age",
    "alt-svc",
    "authentication-info",
    "clear-site-data",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "server-timing",
    "set-cookie",
    "set-cookie2",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "x-request-id",
];

/// Without these a body has no meaning, so they stand with the body where the headers are not given back.
const OF_THE_BODY: [HeaderName; 2] = [header::CONTENT_TYPE, header::CONTENT_ENCODING];

/// Which headers a record keeps.
#[derive(Clone, Copy)]
pub(super) enum Kept {
    All,
    OfTheBody,
    None,
}

/// The headers to record, in order, repeated names included.
pub(super) fn recorded(headers: &HeaderMap, kept: Kept) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let listed = listed_by_connection(headers);
    headers.iter().filter(move |(name, _)| {
        let wanted = match kept {
            Kept::All => true,
            Kept::OfTheBody => OF_THE_BODY.contains(name),
            Kept::None => false,
        };
        wanted && !never(name) && !listed.iter().any(|other| other.eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// Whether `name` must not be replayed, whatever a record says.
pub(super) fn never(name: &HeaderName) -> bool {
    NEVER.binary_search(&name.as_str()).is_ok()
}

/// The names that `Connection` makes hop-by-hop fields. As bytes: one that is no name does not hide the names beside it.
fn listed_by_connection(headers: &HeaderMap) -> Vec<&[u8]> {
    let lines = headers.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes);
    lines.flat_map(|line| line.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(headers: &HeaderMap, kept: Kept) -> Vec<&str> {
        recorded(headers, kept).map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_list_is_sorted_so_that_it_can_be_searched() {
        assert!(NEVER.is_sorted());
    }

    #[test]
    fn what_belongs_to_the_connection_is_not_recorded() {
        let mut headers = HeaderMap::new();
        for name in NEVER {
            headers.append(*name, HeaderValue::from_static("x"));
        }
        headers.insert("connection", HeaderValue::from_bytes(b"close, X-Hop ,\xff").unwrap());
        headers.insert("x-hop", HeaderValue::from_static("1"));
        headers.insert("x-stays", HeaderValue::from_static("1"));
        assert_eq!(names(&headers, Kept::All), ["x-stays"]);
    }

    #[test]
    fn order_and_repeated_names_stay() {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("a"));
        headers.append("x-b", HeaderValue::from_static("b"));
        headers.append("link", HeaderValue::from_static("c"));
        headers.append("content-type", HeaderValue::from_static("d"));
        assert_eq!(names(&headers, Kept::All), ["link", "link", "x-b", "content-type"]);
        assert_eq!(names(&headers, Kept::OfTheBody), ["content-type"]);
        assert_eq!(names(&headers, Kept::None), [""; 0]);
    }
}

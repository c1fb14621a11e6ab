//! The headers that a policy names, in `scope` or `fingerprint`.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{COOKIE, HOST};
use http::request::Parts;
use http::uri::Authority;

use super::target::sent_uri;

/// Returns the values of the header `name`, in order.
///
/// `Host` is the authority of the request, in lower case, since hosts have no case: that of the request target (over HTTP/2 it is
/// `:authority`), or else that of the `Host` header. RFC 9112, section 3.2.2, and RFC 9113, section 8.3.1. `Cookie` is what
/// [`cookies`] returns. If a layer between two routers has rewritten the authority, the one that the handler sees is the last value.
pub(super) fn values<'a>(parts: &'a Parts, name: &str) -> impl Iterator<Item = Cow<'a, [u8]>> {
    let is_host = name.eq_ignore_ascii_case(HOST.as_str());
    let authority = sent_uri(parts).authority().filter(|_| is_host);
    let seen = parts.uri.authority().filter(|seen| is_host && Some(*seen) != authority);
    let lower = |authority: &Authority| Cow::Owned(authority.as_str().to_ascii_lowercase().into_bytes());
    let (target, seen) = (authority.map(lower), seen.map(lower));
    let is_cookie = name.eq_ignore_ascii_case(COOKIE.as_str());
    let cookies = if is_cookie { cookies(&parts.headers).map(Cow::Owned) } else { None };
    let lines = parts.headers.get_all(name).iter().filter(move |_| authority.is_none() && !is_cookie);
    let lines = lines.filter_map(move |line| match (is_host, line.as_bytes()) {
        // A request without an authority says so by an empty `Host`.
        (true, b"") => None,
        (true, host) => Some(Cow::Owned(host.to_ascii_lowercase())),
        (false, value) => Some(Cow::Borrowed(value)),
    });
    target.into_iter().chain(cookies).chain(lines).chain(seen)
}

/// Returns all cookies, as in one line: HTTP/2 may spread them over several, as it likes (RFC 9113, section 8.2.3). `None` if no line has
/// any.
pub(super) fn cookies(headers: &HeaderMap) -> Option<Vec<u8>> {
    let lines = headers.get_all(COOKIE).iter().map(|line| line.as_bytes().trim_ascii());
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join(&b"; "[..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::OriginalUri;
    use http::Request;

    fn host(uri: &str, lines: &[&str]) -> Vec<String> {
        let mut request = Request::post(uri);
        for line in lines {
            request = request.header("host", *line);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        values(&parts, "Host").map(|value| String::from_utf8(value.into_owned()).unwrap()).collect()
    }

    #[test]
    fn the_authority_of_the_target_wins_over_the_header() {
        assert_eq!(host("/a", &["a.example"]), ["a.example"]);
        assert_eq!(host("/a", &["A.Example:8080"]), ["a.example:8080"]);
        assert_eq!(host("https://B.example/a", &["a.example"]), ["b.example"]);
        assert_eq!(host("https://b.example/a", &[]), ["b.example"]);
        assert_eq!(host("/a", &[]), [""; 0]);
        assert_eq!(host("/a", &[""]), [""; 0]);
        assert_eq!(host("/a", &["a.example", "b.example"]), ["a.example", "b.example"]);
    }

    #[test]
    fn a_rewritten_authority_is_beside_the_one_that_was_sent() {
        let host = |sent: &str, seen: &str| {
            let request =
                Request::post(seen).header("host", "line.example").extension(OriginalUri(sent.parse().unwrap()));
            let (parts, ()) = request.body(()).unwrap().into_parts();
            values(&parts, "Host").map(|value| String::from_utf8(value.into_owned()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(host("https://a.example/", "https://B.example/"), ["a.example", "b.example"]);
        assert_eq!(host("https://a.example/", "https://A.example/"), ["a.example"]);
        assert_eq!(host("https://a.example/", "/"), ["a.example"]);
        assert_eq!(host("/", "https://b.example/"), ["line.example", "b.example"]);
        let request = Request::post("https://b.example/").extension(OriginalUri("https://a.example/".parse().unwrap()));
        assert_eq!(values(&request.body(()).unwrap().into_parts().0, "x-a").count(), 0);
    }

    #[test]
    fn another_header_has_its_values_as_they_are() {
        let request = Request::post("https://b.example/a").header("x-a", "One").header("x-a", "").header("x-a", "two");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(values(&parts, "X-A").collect::<Vec<_>>(), [&b"One"[..], b"", b"two"]);
    }
}

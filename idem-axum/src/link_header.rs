//! The header `Link` with the relation `describedby`: where an endpoint is described.

use http::HeaderValue;

/// Returns the value of a `Link` header that points to `uri`.
///
/// # Panics
/// If `uri` is empty or has a character that no URI has.
pub(crate) fn describedby(uri: &str) -> HeaderValue {
    let is_uri =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'\\' | b'^' | b'`' | b'{'..=b'}');
    let value = HeaderValue::try_from(format!("<{uri}>; rel=\"describedby\"")).ok();
    let value = value.filter(|_| !uri.is_empty() && uri.bytes().all(is_uri));
    assert!(value.is_some(), "`{}` is no URI", uri.escape_debug());
    value.unwrap_or(HeaderValue::from_static(""))
}

/// Returns whether a value of the header `Link` has the relation `describedby` (RFC 8288).
pub(crate) fn is_describedby(link: &HeaderValue) -> bool {
    let link = link.to_str().unwrap_or_default();
    link.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        let relations = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("rel")
            && relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("describedby"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_is_found_however_it_is_written() {
        for describes in [
            r#"</policy>; rel="describedby""#,
            "</policy>;rel=describedby",
            r#"</a>; rel="next", </policy>; type="text/plain" ; REL = "help DescribedBy""#,
        ] {
            assert!(is_describedby(&HeaderValue::from_static(describes)), "{describes}");
        }
        for does_not in
            [r#"</a>; rel="next""#, r#"</describedby>; title="describedby""#, r#"</a>; rel="described-by""#, ""]
        {
            assert!(!is_describedby(&HeaderValue::from_static(does_not)), "{does_not}");
        }
    }

    #[test]
    fn a_link_has_only_characters_of_a_uri() {
        assert_eq!(describedby("/.well-known/idempotency"), r#"</.well-known/idempotency>; rel="describedby""#);
        for uri in ["", "/a b", "/a>; rel=\"next\"", "/ä", "/a\r\n"] {
            assert!(std::panic::catch_unwind(|| describedby(uri)).is_err(), "{uri:?}");
        }
    }
}

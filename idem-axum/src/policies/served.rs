//! What is served, beside what the document says.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::MatchedPath;
use http::request::Parts;
use http::{HeaderValue, Method};
use idem_runtime::Fingerprint;

use super::{Endpoint, Rules};
use crate::policy::Policy;
use crate::request;

/// No more are remembered, however many routes there are.
const REMEMBERED: usize = 256;

/// The listed endpoints, for a layer that compares them with those that are called.
#[derive(Debug)]
pub(crate) struct Documented {
    by_path: HashMap<String, Vec<Listed>>,
    undocumented: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Debug)]
struct Listed {
    method: Method,
    policy: &'static Policy,
    rules: Rules,
    /// Whether a request has come, and the policy was compared.
    compared: AtomicBool,
}

impl Documented {
    pub(super) fn new(endpoints: &[Endpoint], undocumented: Arc<Mutex<BTreeSet<String>>>) -> Self {
        let mut by_path: HashMap<String, Vec<Listed>> = HashMap::new();
        for Endpoint { method, path, policy, rules } in endpoints.iter().cloned() {
            by_path.entry(path).or_default().push(Listed { method, policy, rules, compared: AtomicBool::new(false) });
        }
        Self { by_path, undocumented }
    }

    /// Logs a warning, once, if the endpoint that is called with `policy` is not listed, or with other rules.
    pub(crate) fn compare(&self, parts: &Parts, policy: &'static Policy) {
        let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let listed = path.and_then(|path| self.by_path.get(path)).and_then(|listed| of(listed, &parts.method));
        let Some(listed) = listed else {
            return self.remember(
                &parts.method,
                path,
                "is not in the policy document: add it with `Policies::endpoint`",
            );
        };
        if listed.compared.load(Ordering::Relaxed) || listed.compared.swap(true, Ordering::Relaxed) {
            return;
        }
        // One constant may be at several places.
        if !std::ptr::eq(listed.policy, policy) && listed.rules != Rules::of(policy) {
            self.remember(
                &parts.method,
                path,
                "has another policy than the policy document says: list the handler it runs",
            );
        }
    }

    fn remember(&self, method: &Method, path: Option<&str>, problem: &str) {
        // A client may make one up, and would fill the places of the others.
        let method = request::method(method);
        // What follows a fallback is the client's, and no template.
        let path = path.unwrap_or("(fallback)");
        let mut endpoint = String::new();
        let _ = write!(endpoint, "{method} {path}");
        let mut undocumented = self.undocumented.lock().unwrap_or_else(PoisonError::into_inner);
        if undocumented.len() < REMEMBERED && undocumented.insert(endpoint) {
            drop(undocumented);
            tracing::warn!(method, path, "an `#[idempotent]` endpoint {problem}");
        }
    }
}

/// axum answers HEAD by the handler of GET.
fn of<'a>(listed: &'a [Listed], method: &Method) -> Option<&'a Listed> {
    let find = |method: &Method| listed.iter().find(|listed| listed.method == *method);
    find(method).or_else(|| if method == Method::HEAD { find(&Method::GET) } else { None })
}

/// The value of the header `Link` that points there.
///
/// # Panics
/// If `uri` is empty or has a character that no URI has.
pub(crate) fn link(uri: &str) -> HeaderValue {
    let is_uri =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'\\' | b'^' | b'`' | b'{'..=b'}');
    let value = HeaderValue::try_from(format!("<{uri}>; rel=\"describedby\"")).ok();
    let value = value.filter(|_| !uri.is_empty() && uri.bytes().all(is_uri));
    assert!(value.is_some(), "`{}` is no URI", uri.escape_debug());
    value.unwrap_or(HeaderValue::from_static(""))
}

/// Whether a value of the header `Link` has the relation `describedby`, RFC 8288.
pub(crate) fn is_describedby(link: &HeaderValue) -> bool {
    let link = link.to_str().unwrap_or_default();
    link.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        let relations = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("rel")
            && relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("describedby"))
    })
}

/// An entity tag: the beginning of the document's hash.
pub(super) fn tag(document: &[u8]) -> HeaderValue {
    let mut hash = Fingerprint::builder();
    hash.part(b'd', document);
    let hash = hash.finish();
    let digits = hash.as_bytes().iter().take(8).fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    HeaderValue::try_from(format!("\"{digits}\"")).unwrap_or(HeaderValue::from_static("\"\""))
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
        assert_eq!(link("/.well-known/idempotency"), r#"</.well-known/idempotency>; rel="describedby""#);
        for uri in ["", "/a b", "/a>; rel=\"next\"", "/ä", "/a\r\n"] {
            assert!(std::panic::catch_unwind(|| link(uri)).is_err(), "{uri:?}");
        }
    }

    #[test]
    fn another_document_has_another_tag() {
        assert_eq!(tag(b"one"), tag(b"one"));
        assert_ne!(tag(b"one"), tag(b"two"));
        assert_eq!(tag(b"").len(), 18);
    }
}

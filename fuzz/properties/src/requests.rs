//! Fingerprints of requests.

use http::request::Parts;
use http::{HeaderMap, Request};
use idem_axum::fuzzing::fingerprint;
use idem_axum::{Part, Policy, Scope};
use serde_json::Value;

use crate::headers::lines;
use crate::input::Input;

const DEFAULT: Policy = Policy::DEFAULT;
const GLOBAL: Policy = Policy::DEFAULT.scope(Scope::Global).fingerprint(&[Part::Body]);
const HEADERS: Policy = Policy::DEFAULT.fingerprint(&[Part::Query, Part::Header("x-a"), Part::Header("x-b")]);
const JSON: Policy = Policy::DEFAULT.fingerprint(&[Part::Json]);
const POINTERS: Policy = Policy::DEFAULT.fingerprint(&[Part::JsonPointers(&["/a", "/b/0", ""])]);

/// A request as it is written in the input: method, target, header lines up to an empty one, body.
struct ParsedRequest<'a> {
    parts: Parts,
    body: &'a [u8],
}

impl<'a> ParsedRequest<'a> {
    fn read(input: &'a [u8]) -> Option<Self> {
        let mut input = Input(input);
        let mut first = Input(input.until(b'\n'));
        let (method, target) = (first.until(b' '), first.0);
        let end = input.0.windows(2).position(|two| two == b"\n\n").unwrap_or(input.0.len());
        let headers = lines(input.take(end));
        input.take(2);
        let request = Request::builder().method(method).uri(target).body(()).ok()?;
        let mut parts = request.into_parts().0;
        parts.headers = headers;
        Some(Self { parts, body: input.0 })
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        values(&self.parts.headers, name)
    }

    /// The endpoint (there is no route here, so it is the path) and the caller, which always take part.
    fn always(&self) -> (&str, &str, Vec<&[u8]>) {
        (self.parts.method.as_str(), self.parts.uri.path(), self.values("authorization"))
    }

    fn fingerprint(&self, policy: &Policy) -> [u8; 32] {
        *fingerprint(policy, &self.parts, self.body).as_bytes()
    }
}

fn values<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
}

/// The input is two requests, parted by a zero byte. They have one fingerprint if they are equal in what the policy
/// declares, and nowhere else.
pub(crate) fn requests(input: &[u8]) {
    let mut input = Input(input);
    let (Some(one), Some(other)) = (ParsedRequest::read(input.until(0)), ParsedRequest::read(input.0)) else { return };
    let agree = |policy: &Policy| one.fingerprint(policy) == other.fingerprint(policy);
    let query = |request: &ParsedRequest| request.parts.uri.query().map(str::to_owned);

    let same = one.always() == other.always() && query(&one) == query(&other) && one.body == other.body;
    assert_eq!(agree(&DEFAULT), same, "by default");
    let same = one.always().0 == other.always().0 && one.always().1 == other.always().1 && one.body == other.body;
    assert_eq!(agree(&GLOBAL), same, "the body, for all callers");
    let same = one.always() == other.always()
        && query(&one) == query(&other)
        && one.values("x-a") == other.values("x-a")
        && one.values("x-b") == other.values("x-b");
    assert_eq!(agree(&HEADERS), same, "the query and two headers");

    if agree(&JSON) || agree(&POINTERS) {
        assert_eq!(one.always(), other.always(), "the endpoint and the caller");
        assert!(one.body == other.body || equal_json(one.body, other.body), "one fingerprint for two meanings");
    }
    // White space around a document does not count, if it is one that all readers read alike.
    if one.body != b""
        && let Ok(value) = serde_json::from_slice::<Value>(one.body)
        && matches!(value, Value::String(_))
    {
        let spaced = [b" ", one.body, b"\n"].concat();
        let spaced = *fingerprint(&JSON, &one.parts, &spaced).as_bytes();
        assert_eq!(spaced, one.fingerprint(&JSON), "white space counts");
    }
}

fn equal_json(one: &[u8], other: &[u8]) -> bool {
    let (Ok(one), Ok(other)) = (serde_json::from_slice(one), serde_json::from_slice(other)) else { return false };
    equal(&one, &other)
}

/// Equal, numbers by their value.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let has = |(name, value)| other.get(name).is_some_and(|other| equal(value, other));
            one.len() == other.len() && one.iter().all(has)
        }
        (one, other) => one == other,
    }
}

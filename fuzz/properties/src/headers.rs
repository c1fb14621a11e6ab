//! The header filter, from the response of the handler to its replay.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};
use idem_axum::fuzzing::{recorded, replay};
use idem_axum::{Policy, Replay};

use crate::input::Input;

/// What belongs to one exchange, one connection or one client.
pub(crate) const NEVER: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "date",
    "age",
    "set-cookie",
    "set-cookie2",
    "www-authenticate",
    "proxy-authenticate",
    "authentication-info",
    "proxy-authentication-info",
    "clear-site-data",
    "alt-svc",
    "server-timing",
    "traceparent",
    "tracestate",
    "x-request-id",
];

const ALL: Policy = Policy::DEFAULT;
const OF_THE_BODY: Policy = Policy::DEFAULT.replay(Replay::STATUS.and(Replay::BODY));
const NONE: Policy = Policy::DEFAULT.replay(Replay::STATUS);

/// The input is header lines. Of a response with them nothing that belongs to one exchange is replayed, and everything else is,
/// in order, repeated names included.
pub fn header_filter(input: &[u8]) {
    let headers = lines(input);
    let flat = |headers: &HeaderMap| -> Vec<(HeaderName, HeaderValue)> {
        headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let listed: Vec<Vec<u8>> = headers
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(|name| name.trim_ascii().to_ascii_lowercase())
        .collect();
    for (policy, keeps) in [(&ALL, Keeps::All), (&OF_THE_BODY, Keeps::OfTheBody), (&NONE, Keeps::None)] {
        let mut wanted = flat(&headers);
        wanted.retain(|(name, _)| {
            let of_one_exchange =
                NEVER.contains(&name.as_str()) || listed.iter().any(|other| other == name.as_str().as_bytes());
            !of_one_exchange && keeps.keeps(name)
        });
        if !wanted.iter().any(|(name, _)| name == "cache-control") {
            wanted.push((HeaderName::from_static("cache-control"), HeaderValue::from_static("no-store")));
        }
        wanted.retain(|(name, _)| name != "idempotent-replayed");

        let mut response = Response::new(Body::from("body"));
        *response.headers_mut() = headers.clone();
        let record = recorded(policy, response).expect("it is recorded");
        let mut replayed = replay(policy, &record).expect("it is replayed");
        assert_eq!(replayed.headers_mut().remove("idempotent-replayed"), Some(HeaderValue::from_static("true")));
        assert_eq!(sorted(flat(replayed.headers())), sorted(wanted.clone()), "the same headers");
        // Taking the marker out moves the last header to its place, so the order is only checked if it came last.
        if !headers.contains_key("idempotent-replayed") {
            assert_eq!(flat(replayed.headers()), wanted, "in order");
        }
    }
}

#[derive(Clone, Copy)]
enum Keeps {
    All,
    OfTheBody,
    None,
}

impl Keeps {
    fn keeps(self, name: &HeaderName) -> bool {
        match self {
            Self::All => true,
            Self::OfTheBody => name == "content-type" || name == "content-encoding",
            Self::None => false,
        }
    }
}

fn sorted(mut headers: Vec<(HeaderName, HeaderValue)>) -> Vec<(String, Vec<u8>)> {
    let mut headers: Vec<_> =
        headers.drain(..).map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    headers.sort();
    headers
}

/// The header lines that can be header lines.
pub(crate) fn lines(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut input = Input(input);
    while !input.0.is_empty() {
        let mut line = Input(input.until(b'\n'));
        let name = HeaderName::from_bytes(line.until(b':'));
        let value = HeaderValue::from_bytes(line.0.trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

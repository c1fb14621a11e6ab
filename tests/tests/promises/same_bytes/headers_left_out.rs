//! Headers of one exchange, such as `Date` and `Set-Cookie`, are never replayed.

use axum::body::Body;
use axum::http::HeaderValue;
use axum::response::Response;
use idem_tests::{Reply, Setup, post as send, responding};

/// Each with a value that a bare server lets through.
const NEVER: &[(&str, &str)] = &[
    ("age", "1"),
    ("alt-svc", "h3=\":443\""),
    ("authentication-info", "nextnonce=\"n\""),
    ("clear-site-data", "\"*\""),
    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("keep-alive", "timeout=5"),
    ("proxy-authenticate", "Basic"),
    ("proxy-connection", "keep-alive"),
    ("server-timing", "db;dur=1"),
    ("set-cookie", "session=secret"),
    ("te", "trailers"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=b"),
    ("trailer", "x-checksum"),
    ("upgrade", "h2c"),
    ("www-authenticate", "Bearer"),
    ("x-request-id", "r-1"),
    ("x-hop-a", "1"),
    ("x-hop-b", "1"),
];

fn with_headers(headers: &[(&'static str, &'static str)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

async fn twice(setup: &Setup) -> (Reply, Reply) {
    let server = setup.serve().await;
    let ask = send("/").key("k");
    let (first, replay) = (ask.at(&server).await, ask.at(&server).await);
    assert!(replay.is_replay(), "{replay:?}");
    (first, replay)
}

#[tokio::test]
async fn headers_of_one_exchange_are_not_replayed() {
    let setup = responding!([], || {
        let mut response = with_headers(NEVER, "body");
        response.headers_mut().append("set-cookie", HeaderValue::from_static("second=1"));
        response.headers_mut().append("connection", HeaderValue::from_static("X-Hop-A, keep-alive"));
        response.headers_mut().append("connection", HeaderValue::from_static("x-hop-b"));
        response.headers_mut().append("x-stays", HeaderValue::from_static("1"));
        response
    });
    let (first, replay) = twice(&setup).await;
    for (name, value) in NEVER {
        assert!(!first.all(name).is_empty(), "control: `{name}` is in the first response");
        assert!(!replay.all(name).contains(&value.as_bytes()), "`{name}` is replayed");
        assert!(*name == "date" || replay.all(name).is_empty(), "`{name}` is replayed");
    }
    assert!(replay.all("connection").is_empty(), "{replay:?}");
    assert_eq!((replay.header("x-stays"), replay.text()), (Some("1"), "body"));
}

#[tokio::test]
async fn the_date_of_a_replay_is_its_own() {
    let setup = responding!([], || with_headers(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")], "x"));
    let (first, replay) = twice(&setup).await;
    assert_eq!(first.header("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert!(replay.header("date").is_some_and(|date| !date.contains("1994")));
}

#[tokio::test]
async fn headers_named_beside_an_opaque_byte_in_connection_are_not_replayed() {
    let setup = responding!([], || {
        let mut response = with_headers(&[("x-hop-a", "1")], "body");
        response.headers_mut().append("connection", HeaderValue::from_bytes(b"x-hop-a, \xfc").unwrap());
        response
    });
    let ask = send("/").key("k");
    ask.to(&setup.app).await;
    assert!(ask.to(&setup.app).await.all("x-hop-a").is_empty());
}

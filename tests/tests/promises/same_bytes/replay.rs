//! A replay has the recorded status, headers and body, byte for byte.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum::{Json, http};
use idem_tests::{Connection, H2, Reply, Setup, post as send, responding};
use serde_json::json;

/// Asks twice over sockets, HTTP/1.1 and HTTP/2, and gives back the first response and the replay.
async fn first_and_replay(setup: &Setup) -> (Reply, Reply) {
    let ask = send("/").key("k");
    let server = setup.serve().await;
    let mut connection = Connection::open(&server).await;
    let first = ask.over(&mut connection).await;
    let replay = ask.over(&mut connection).await;
    assert_eq!(setup.probe.runs(), 1);
    replay.assert_replay_of(&first);
    H2::open(&server).await.ask(&ask).await.assert_replay_of(&first);
    ask.to(&setup.app).await.assert_replay_of(&first);
    (first, replay)
}

fn response(status: u16, headers: &[(&'static str, &'static [u8])], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    response
}

#[tokio::test]
async fn a_binary_body() {
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let expected = body.clone();
    let setup = responding!([], move || body.clone());
    let (first, replay) = first_and_replay(&setup).await;
    assert_eq!((&first.body, &replay.body), (&expected, &expected));
    assert_eq!(replay.header("content-length"), Some("100000"));
}

#[tokio::test]
async fn an_empty_body() {
    let setup = responding!([], || ());
    let (_, replay) = first_and_replay(&setup).await;
    assert_eq!((replay.body.len(), replay.header("content-length")), (0, Some("0")));
}

#[tokio::test]
async fn a_json_body_with_location_and_etag() {
    let setup = responding!([], || {
        let headers = [(header::LOCATION, "/orders/1"), (header::ETAG, "\"v1\"")];
        (StatusCode::CREATED, headers, Json(json!({ "id": 1, "note": "ü" })))
    });
    let (_, replay) = first_and_replay(&setup).await;
    assert_eq!(replay.header("location"), Some("/orders/1"));
    assert_eq!(replay.header("etag"), Some("\"v1\""));
    assert_eq!(replay.header("content-type"), Some("application/json"));
    assert_eq!(replay.json(), json!({ "id": 1, "note": "ü" }));
}

#[tokio::test]
async fn every_status_that_has_a_body() {
    for status in [200, 201, 202, 203, 301, 302, 307, 400, 402, 404, 409, 418, 422, 429, 500, 502, 503, 599, 999] {
        let setup = responding!([], move || response(status, &[], format!("status {status}")));
        let (first, replay) = first_and_replay(&setup).await;
        assert_eq!((first.status, replay.status), (status, status));
        assert_eq!(replay.text(), format!("status {status}"));
    }
}

#[tokio::test]
async fn a_redirect() {
    let setup = responding!([], || Redirect::to("/orders/1"));
    let (_, replay) = first_and_replay(&setup).await;
    assert_eq!((replay.status, replay.header("location")), (303, Some("/orders/1")));
}

#[tokio::test]
async fn repeated_headers_in_order() {
    let setup = responding!([], || {
        AppendHeaders([
            ("link", "<a>"),
            ("warning", "1"),
            ("link", "<b>"),
            ("link", "<a>"),
            ("vary", "x"),
            ("warning", "2"),
        ])
    });
    let (_, replay) = first_and_replay(&setup).await;
    assert_eq!(replay.all("link"), [b"<a>", b"<b>", b"<a>"]);
    assert_eq!(replay.all("warning"), [b"1", b"2"]);
}

#[tokio::test]
async fn header_values_that_are_no_text() {
    let setup = responding!([], || response(
        200,
        &[("x-latin", b"gr\xfc\xdf"), ("x-bytes", b"\x80\xff\t~"), ("x-empty", b"")],
        "x"
    ));
    let (first, replay) = first_and_replay(&setup).await;
    assert_eq!(first.all("x-latin"), [b"gr\xfc\xdf"]);
    assert_eq!(replay.all("x-bytes"), [b"\x80\xff\t~"]);
    assert_eq!(replay.all("x-empty"), [b""]);
}

#[tokio::test]
async fn hundreds_of_headers() {
    let setup = responding!([], || {
        let mut response = ().into_response();
        for number in 0..90 {
            let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
            response.headers_mut().append(&name, HeaderValue::from(number));
            response.headers_mut().append(&name, HeaderValue::from(number + 1));
        }
        response
    });
    let (_, replay) = first_and_replay(&setup).await;
    assert_eq!(replay.all("x-89"), [b"89", b"90"]);
}

#[tokio::test]
async fn cache_control_is_added_only_where_there_is_none() {
    let with = responding!([], || response(
        200,
        &[("cache-control", b"private, max-age=1"), ("cache-control", b"no-transform")],
        ""
    ));
    let (first, replay) = first_and_replay(&with).await;
    assert_eq!(replay.all("cache-control"), first.all("cache-control"));
    let without = responding!([], || "x");
    let (first, replay) = first_and_replay(&without).await;
    assert_eq!((first.header("cache-control"), replay.header("cache-control")), (None, Some("no-store")));
}

#[tokio::test]
async fn a_marker_from_the_handler_does_not_hide_that_it_ran() {
    let setup =
        responding!([], || response(200, &[("idempotent-replayed", b"false"), ("idempotent-replayed", b"no")], "x"));
    let ask = send("/").key("k");
    ask.to(&setup.app).await;
    assert_eq!(ask.to(&setup.app).await.all("idempotent-replayed"), [b"true"]);
}

#[tokio::test]
async fn a_hundred_replays_are_all_equal() {
    let setup = responding!([], || (StatusCode::CREATED, [("x-a", "1")], "body"));
    let ask = send("/").key("k");
    let first = ask.to(&setup.app).await;
    let replay = ask.to(&setup.app).await;
    replay.assert_replay_of(&first);
    for _ in 0..100 {
        assert_eq!(ask.to(&setup.app).await, replay);
    }
}
